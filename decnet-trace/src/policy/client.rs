//! How much of a client's address is told.

use std::{fmt, net::IpAddr};

use ring::hmac;

/// How many bytes of a hash are shown: enough that no two clients of a service share one.
const SHOWN: usize = 8;

/// How much of a client's address is told.
#[derive(Clone, Default)]
pub enum ClientAddress {
    /// All of it.
    #[default]
    Whole,
    /// The network: the first 24 bits of IPv4, the first 48 of IPv6.
    Cut,
    /// A keyed hash (HMAC-SHA-256), the same for the same address and key.
    Hashed(hmac::Key),
}

impl ClientAddress {
    /// Hashed with this secret.
    pub fn hashed(secret: &[u8]) -> Self {
        Self::Hashed(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// An address as it may be shown.
    pub fn shown(&self, address: IpAddr) -> String {
        use fmt::Write as _;

        let address = address.to_canonical();
        match (self, address) {
            (Self::Whole, address) => address.to_string(),
            (Self::Cut, IpAddr::V4(address)) => {
                let [a, b, c, _] = address.octets();
                IpAddr::from([a, b, c, 0]).to_string()
            }
            (Self::Cut, IpAddr::V6(address)) => {
                let [a, b, c, ..] = address.segments();
                IpAddr::from([a, b, c, 0, 0, 0, 0, 0]).to_string()
            }
            (Self::Hashed(key), address) => {
                let tag = match address {
                    IpAddr::V4(address) => hmac::sign(key, &address.octets()),
                    IpAddr::V6(address) => hmac::sign(key, &address.octets()),
                };
                tag.as_ref()[..SHOWN]
                    .iter()
                    .fold(String::new(), |mut out, byte| {
                        let _ = write!(out, "{byte:02x}");
                        out
                    })
            }
        }
    }
}

/// Without the key.
impl fmt::Debug for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "Whole",
            Self::Cut => "Cut",
            Self::Hashed(_) => "Hashed",
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Addresses are shown whole, cut to their network, or as a hash that only the key's owner can
    /// make; IPv4 in IPv6 is IPv4.
    #[test]
    fn shows_addresses() {
        let mapped: IpAddr = "::ffff:192.0.2.77".parse().unwrap();
        let v4: IpAddr = "192.0.2.77".parse().unwrap();
        let v6: IpAddr = "2001:db8:1:2::7".parse().unwrap();
        assert_eq!(ClientAddress::Whole.shown(mapped), "192.0.2.77");
        assert_eq!(ClientAddress::Cut.shown(mapped), "192.0.2.0");
        assert_eq!(ClientAddress::Cut.shown(v6), "2001:db8:1::");
        let (one, two) = (ClientAddress::hashed(b"one"), ClientAddress::hashed(b"two"));
        // HMAC-SHA-256 of the bytes c0 00 02 4d with the key "one", as Python's hmac gives it.
        assert_eq!(one.shown(mapped), "cf8969fb9a226b95");
        assert_eq!(one.shown(v4), one.shown(mapped));
        assert_ne!(one.shown(v4), two.shown(v4));
        assert_ne!(one.shown(v4), one.shown(v6));
        assert!(!format!("{one:?}").contains("one"));
    }
}
