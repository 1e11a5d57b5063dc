//! What the correlator counts, by reason.

/// Defines the counters once: the struct and the names.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Everything that was paired, and everything that was not, by reason.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Counters {
            /// All counters by name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),+].into_iter()
            }
        }
    };
}

counters! {
    /// Exchanges handed out, however they ended.
    exchanges,
    /// Connections on which something else than HTTP/1 was seen before any HTTP/1: another protocol,
    /// or the middle of a message that began before the agent.
    not_http_connections,
    /// Bytes outside any message that was followed, on those connections and on others.
    stray_bytes,
    /// Connections that turned out to be TLS.
    tls_connections,
    /// Connections that turned out to be HTTP/2.
    http2_connections,
    /// Responses whose request was not seen.
    unpaired_responses,
    /// Heads of which only a part could be seen: longer than a capture, or than what is kept.
    heads_cut,
    /// Request heads that never came to their end.
    heads_unfinished,
    /// Operations of processes from before a time in which they were not traced.
    operations_before_a_gap,
    /// Exchanges dropped because what followed could not be paired with certainty.
    exchanges_lost,
    /// Connections given up for good because the messages on them could not be told apart.
    connections_lost,
    /// Connections forgotten because there were too many.
    connections_evicted,
    /// Connections that processes made and had not used when too many were remembered: how long making them took
    /// is not told.
    connects_forgotten,
    /// Times that requests may have been read out of sight on a connection: calls that may be theirs have no
    /// parent.
    requests_hidden,
    /// Connections given up because all that is under way together held too much memory.
    over_memory,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each counter has its own name and its own value.
    #[test]
    fn names_and_values() {
        let counters = Counters {
            exchanges: 3,
            over_memory: 5,
            ..Counters::default()
        };
        let all: Vec<_> = counters.iter().collect();
        assert_eq!(all.first(), Some(&("exchanges", 3)));
        assert_eq!(all.last(), Some(&("over_memory", 5)));
        assert_eq!(all.iter().map(|(_, value)| value).sum::<u64>(), 8);
    }
}
