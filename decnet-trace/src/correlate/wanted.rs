//! The headers that the configuration asks for, beside those that are always read.

use crate::protocol::http1::{Headers, Text};

/// The longest value that is kept, in bytes.
const VALUE_MAX: usize = 512;

/// The most values that are kept of one message.
const VALUES_MAX: usize = 32;

/// A header that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, in lower case.
    pub name: Box<str>,
    /// The attribute that its values are told by.
    pub attribute: &'static str,
}

/// The headers that are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedHeaders {
    /// Of requests.
    pub request: Box<[Wanted]>,
    /// Of responses.
    pub response: Box<[Wanted]>,
}

/// A header that was asked for: its attribute and its value.
pub type Kept = (&'static str, Box<str>);

/// Takes those of a message's headers that are asked for, in the order of the names asked for. Costs
/// nothing where none is.
pub(super) fn take(wanted: &[Wanted], headers: &Headers<'_>, into: &mut Vec<Kept>) {
    for Wanted { name, attribute } in wanted {
        let is = |found: &[u8]| found.eq_ignore_ascii_case(name.as_bytes());
        let values = headers.all().filter(|(found, _)| is(found));
        for (_, Text(value)) in values {
            if into.len() >= VALUES_MAX {
                return;
            }
            into.push((attribute, Text(value).to_text(VALUE_MAX).into()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::protocol::http1::{Parsed, parse};

    /// What is asked for is taken, every time that it stands there, folded lines put together; what is
    /// not is left alone.
    #[test]
    fn takes_what_is_asked_for() {
        let wanted = |name: &str, attribute| Wanted {
            name: name.into(),
            attribute,
        };
        let names = [wanted("x-tenant", "t"), wanted("accept", "a")];
        let head = b"GET / HTTP/1.1\r\nX-Tenant: blue\r\nHost: h\r\nnone\r\nACCEPT: a,\r\n  b\r\n\
            x-tenant:red\r\nauthorization: no\r\n\r\nx-tenant: body";
        let Parsed::Request(request) = parse(head) else {
            panic!("no request");
        };
        let mut kept = Vec::new();
        take(&names, &request.headers, &mut kept);
        let kept: Vec<_> = kept.iter().map(|(name, value)| (*name, &**value)).collect();
        assert_eq!(kept, [("t", "blue"), ("t", "red"), ("a", "a, b")]);
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "accept: x\r\n".repeat(99));
        let Parsed::Response(response) = parse(many.as_bytes()) else {
            panic!("no response");
        };
        let mut kept = Vec::new();
        take(&names, &response.headers, &mut kept);
        assert_eq!(kept.len(), VALUES_MAX);
        assert_eq!(response.headers.all().last().unwrap().0, b"accept");
    }
}
