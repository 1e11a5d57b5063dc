//! What a piece of a path or a query looks like: a word, an id, or a secret.
//!
//! Both redaction and route folding ask here, so that what one masks the other never shows.

use std::ops::Range;

/// What a piece of text looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Nothing in particular.
    Plain,
    /// Decimal digits.
    Number,
    /// A UUID, hyphenated.
    Uuid,
    /// A hash, or part of one: at least eight hex digits.
    Hash,
    /// A calendar date, or a date and time.
    Date,
    /// A secret.
    Secret(Secret),
}

/// A kind of secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secret {
    /// An e-mail address, or another thing with a name in front of an `@`.
    Email,
    /// A payment card's number.
    Card,
    /// A JSON Web Token, or a long random text.
    Token,
}

/// Hex digits from this many on may be a key, and not just a name of something.
const SECRET_HEX: usize = 32;

/// No shorter piece is a card or a token.
pub(super) const SECRET_MIN: usize = CARD_MIN;

/// The shortest random text that is taken for a token.
const TOKEN_MIN: usize = 16;

const _: () =
    assert!(SECRET_MIN <= CARD_MIN && SECRET_MIN <= TOKEN_MIN && SECRET_MIN <= SECRET_HEX);

/// From this many characters on, a few changes tell a token.
const LONG: usize = 24;

/// No word is this long.
const WORD_MAX: usize = 40;

/// The fewest and the most digits of a card's number.
pub(super) const CARD_MIN: usize = 13;
const CARD_MAX: usize = 19;

/// The longest a piece may be before it is a secret, whatever it looks like: it says nothing to a
/// reader, and it cannot be told what it carries.
const PLAIN_MAX: usize = 128;

/// Room to decode a percent-encoded piece without allocation; a piece that does not fit is longer
/// than [`PLAIN_MAX`] anyway.
const DECODED_MAX: usize = 3 * PLAIN_MAX;

/// How often percent-encoding is undone: proxies and redirects encode again what came to them encoded.
/// What is encoded still is a secret, for it cannot be told what it carries.
pub(super) const DECODINGS: usize = 5;

/// Looks at a piece of a path (between slashes) or of a query (a name or a value), percent-encoded
/// as it stood.
pub(super) fn shape(text: &str) -> Shape {
    if let Some(shape) = obvious(text.as_bytes()) {
        return shape;
    }
    looked_at(text)
}

/// The shape of a short piece that is a word or a number, which most are.
fn obvious(bytes: &[u8]) -> Option<Shape> {
    if bytes.len() >= SECRET_MIN {
        return None;
    }
    let mut digits = 0;
    for byte in bytes {
        match byte {
            b'0'..=b'9' => digits += 1,
            b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' => {}
            _ => return None,
        }
    }
    match digits {
        0 => Some(Shape::Plain),
        _ if digits == bytes.len() => Some(Shape::Number),
        _ => None,
    }
}

fn looked_at(text: &str) -> Shape {
    if memchr::memchr(b'%', text.as_bytes()).is_none() {
        return shape_of(text.as_bytes());
    }
    let mut rooms = [[0; DECODED_MAX]; 2];
    match decode(text, &mut rooms) {
        Some(bytes) => shape_of(bytes),
        None => Shape::Secret(Secret::Token),
    }
}

/// Whether a piece of a text looks like a secret.
pub(super) fn is_secret(text: &str) -> bool {
    !is_too_short(text.as_bytes()) && matches!(shape(text), Shape::Secret(_))
}

/// Whether a piece is too short for a secret, and no e-mail address.
fn is_too_short(bytes: &[u8]) -> bool {
    bytes.len() < SECRET_MIN && !may_hold_at(bytes)
}

/// Whether a text holds an `@`, or what may hide one: without, there are no credentials and no e-mail addresses
/// in it, however often it was percent-encoded.
pub(super) fn may_hold_at(bytes: &[u8]) -> bool {
    memchr::memchr2(b'@', b'%', bytes).is_some()
}

/// Whether all pieces of a path are too short for secrets, and there is nothing else in it to mask.
pub(super) fn is_harmless(path: &str) -> bool {
    let mut length = 0;
    path.bytes().all(|byte| {
        length = if byte == b'/' { 0 } else { length + 1 };
        length < SECRET_MIN && !matches!(byte, b'@' | b'%' | b';')
    })
}

fn shape_of(bytes: &[u8]) -> Shape {
    if bytes.len() > PLAIN_MAX {
        return Shape::Secret(Secret::Token);
    }
    if is_uuid(bytes) {
        return Shape::Uuid;
    }
    if is_email(bytes) {
        return Shape::Secret(Secret::Email);
    }
    if find_card(bytes).is_some() {
        return Shape::Secret(Secret::Card);
    }
    if is_date(bytes) {
        return Shape::Date;
    }
    if has_jwt(bytes) || parts(bytes).any(is_key) || pieces(bytes).any(is_random) {
        return Shape::Secret(Secret::Token);
    }
    let number = bytes
        .strip_prefix(b"-")
        .or_else(|| bytes.strip_prefix(b"+"))
        .unwrap_or(bytes);
    if !number.is_empty() && number.iter().all(u8::is_ascii_digit) {
        return Shape::Number;
    }
    if is_hash(bytes) {
        return Shape::Hash;
    }
    Shape::Plain
}

/// The pieces between the punctuation of a path segment.
pub(super) fn parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes
        .split(|b| !b.is_ascii_alphanumeric() && *b < 0x80)
        .filter(|part| !part.is_empty())
}

/// Like [`parts`], but in one piece what base64url may hold.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|b| !b.is_ascii_alphanumeric() && !b"-_".contains(b))
}

/// Hex digits that look like a hash: eight at least and not a word (`feedface` is one).
pub(super) fn is_hash(bytes: &[u8]) -> bool {
    bytes.len() >= 8
        && bytes.iter().all(u8::is_ascii_hexdigit)
        && (bytes.len() >= 16 || bytes.iter().any(u8::is_ascii_digit))
}

/// Undoes percent-encoding (and nothing else), again where what it hid is percent-encoded itself;
/// `None` where the room or [`DECODINGS`] do not suffice.
fn decode<'a>(text: &str, [room, other]: &'a mut [[u8; DECODED_MAX]; 2]) -> Option<&'a [u8]> {
    let (mut from, mut to) = (room, other);
    let mut length = decode_once(text.as_bytes(), from)?;
    for _ in 1..DECODINGS {
        if !has_escape(&from[..length]) {
            break;
        }
        length = decode_once(&from[..length], to)?;
        std::mem::swap(&mut from, &mut to);
    }
    (!has_escape(&from[..length])).then_some(&from[..length])
}

/// Undoes percent-encoding into `room`, and says how much of that it took.
fn decode_once(bytes: &[u8], room: &mut [u8]) -> Option<usize> {
    let (mut from, mut to) = (0, 0);
    while from < bytes.len() {
        let (byte, used) = match escape(&bytes[from..]) {
            Some(byte) => (byte, 3),
            None => (bytes[from], 1),
        };
        *room.get_mut(to)? = byte;
        (from, to) = (from + used, to + 1);
    }
    Some(to)
}

fn has_escape(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'%', bytes).any(|at| escape(&bytes[at..]).is_some())
}

/// The byte that is percent-encoded at the front.
fn escape(bytes: &[u8]) -> Option<u8> {
    match bytes {
        [b'%', high, low, ..] => Some(hex(*high)? << 4 | hex(*low)?),
        _ => None,
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|d| d as u8)
}

fn is_uuid(bytes: &[u8]) -> bool {
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => *b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// `2024-01-31`, with or without a time behind it.
fn is_date(bytes: &[u8]) -> bool {
    let Some((date, time)) = bytes.split_at_checked(10) else {
        return false;
    };
    let digits = date.iter().enumerate().all(|(i, b)| match i {
        4 | 7 => *b == b'-',
        _ => b.is_ascii_digit(),
    });
    let two = |at: usize| (date[at] - b'0') * 10 + date[at + 1] - b'0';
    digits
        && (1..=12).contains(&two(5))
        && (1..=31).contains(&two(8))
        && match time {
            [] => true,
            [b'T' | b't' | b' ' | b'_', rest @ ..] => {
                rest.len() <= 22
                    && rest
                        .iter()
                        .all(|b| b.is_ascii_digit() || b":.+-Zz".contains(b))
            }
            _ => false,
        }
}

/// `someone@example.com` and `user:password@host`; not `@someone`, nor `package@1.2.3`.
fn is_email(bytes: &[u8]) -> bool {
    let Some(at) = memchr::memrchr(b'@', bytes) else {
        return false;
    };
    let (name, host) = (&bytes[..at], &bytes[at + 1..]);
    if name.is_empty() || host.is_empty() {
        return false;
    }
    let label = host.rsplit(|b| *b == b'.').next().unwrap_or_default();
    let dotted = label.len() < host.len();
    name.contains(&b':')
        || (dotted
            && label
                .iter()
                .take_while(|b| b.is_ascii_alphabetic() || **b >= 0x80)
                .count()
                >= 2)
}

/// Holds pieces of base64url with dots between, the first of which is a JSON object: RFC 7519.
fn has_jwt(bytes: &[u8]) -> bool {
    bytes.len() >= TOKEN_MIN
        && memchr::memmem::find(bytes, b"eyJ").is_some()
        && bytes
            .split(|b| !b.is_ascii_alphanumeric() && !b"-_.".contains(b))
            .any(|piece| {
                piece.starts_with(b"eyJ") && piece.contains(&b'.') && piece.len() >= TOKEN_MIN
            })
}

/// Enough hex digits for a key, or more letters and digits in a row than any word has.
fn is_key(part: &[u8]) -> bool {
    let hex = part.iter().all(u8::is_ascii_hexdigit) && part.len() >= SECRET_HEX;
    hex && !part.iter().all(u8::is_ascii_digit)
        || part.len() >= WORD_MAX && part.iter().all(u8::is_ascii_alphanumeric)
        || is_random(part)
}

/// A random text: long, and changing between digits and letters, or between cases, more often than
/// words, camel case and version numbers do.
fn is_random(piece: &[u8]) -> bool {
    #[derive(Clone, Copy, PartialEq)]
    enum Class {
        Lower,
        Upper,
        Digit,
        Other,
    }
    let class = |at: usize| match piece.get(at) {
        Some(b'a'..=b'z') => Class::Lower,
        Some(b'A'..=b'Z') => Class::Upper,
        Some(b'0'..=b'9') => Class::Digit,
        _ => Class::Other,
    };
    // A hash names something.
    if piece.len() < TOKEN_MIN || piece.iter().all(u8::is_ascii_hexdigit) {
        return false;
    }
    let mut changes = 0;
    for at in 1..piece.len() {
        let (before, here, after) = (class(at - 1), class(at), class(at + 1));
        let camel = here == Class::Upper && after == Class::Lower
            || before == Class::Upper && here == Class::Lower;
        let separator = before == Class::Other || here == Class::Other;
        changes += usize::from(before != here && !camel && !separator);
    }
    // Random base64, base36 and base32 count a change at every third character.
    if piece.len() < LONG {
        return changes >= 3 && changes * 6 >= piece.len();
    }
    // The words of camel case have more than three letters, on the average.
    let count = |test: fn(&u8) -> bool| piece.iter().filter(|b| test(b)).count();
    let (lower, upper) = (count(u8::is_ascii_lowercase), count(u8::is_ascii_uppercase));
    let digits = count(u8::is_ascii_digit);
    changes >= 3
        || lower.min(upper) * 10 >= piece.len() * 3 && changes >= 1
        || lower > 0 && upper > 0 && digits >= 2 && changes >= 2
        || lower == 0 && digits > 0
}

/// Where a card's number stands: 13 to 19 digits, in groups or not, that some network issues and whose
/// last digit checks (ISO/IEC 7812). Groups of other digits may stand around it.
pub(super) fn find_card(bytes: &[u8]) -> Option<Range<usize>> {
    let digits_from = |at: usize| {
        let run = bytes[at..].iter().take_while(|b| b.is_ascii_digit());
        run.count()
    };
    let mut next = 0;
    while let Some(begin) = bytes[next..].iter().position(u8::is_ascii_digit) {
        let begin = next + begin;
        next = begin + digits_from(begin);
        let mut digits = [0; CARD_MAX];
        let (mut count, mut at) = (0, begin);
        loop {
            let end = at + digits_from(at);
            let Some(room) = digits.get_mut(count..count + end - at) else {
                break;
            };
            for (digit, byte) in room.iter_mut().zip(&bytes[at..end]) {
                *digit = byte - b'0';
            }
            count += end - at;
            if is_card(&digits[..count]) {
                return Some(begin..end);
            }
            match bytes[end..] {
                [b'-' | b' ' | b'+' | b'.' | b'_', b'0'..=b'9', ..] => at = end + 1,
                _ => break,
            }
        }
    }
    None
}

fn is_card(digits: &[u8]) -> bool {
    let count = digits.len();
    if !(CARD_MIN..=CARD_MAX).contains(&count) {
        return false;
    }
    let prefix = |n: usize| digits[..n].iter().fold(0u32, |p, d| p * 10 + u32::from(*d));
    let issued = match prefix(4) {
        4000..=4999 => matches!(count, 13 | 16 | 19),
        5100..=5599 | 2221..=2720 => count == 16,
        3400..=3499 | 3700..=3799 => count == 15,
        3000..=3059 | 3600..=3699 | 3800..=3999 => count >= 14,
        3528..=3589 | 6011 | 6440..=6599 | 6200..=6299 => count >= 16,
        5000 | 5018 | 5020 | 5038 | 5893 | 6304 | 6759 | 6761..=6763 => true,
        _ => false,
    };
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| match (i % 2, u32::from(*d) * 2) {
            (0, _) => u32::from(*d),
            (_, twice) if twice > 9 => twice - 9,
            (_, twice) => twice,
        })
        .sum();
    issued && sum.is_multiple_of(10)
}

/// The word that stands for what was masked, as OpenTelemetry's conventions have it.
pub(super) const MASK: &str = "REDACTED";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Words, versions, names of things and slugs are left alone.
    #[test]
    fn leaves_words_alone() {
        for text in [
            "",
            "users",
            "v1",
            "v1.43",
            "oauth2",
            "sha256",
            "k8s",
            "favicon.ico",
            "deadbeef",
            "facade",
            "how-to-deploy-fastapi-on-kubernetes-in-2024",
            "oauth2CallbackHandler",
            "getUserByAccountIdV2",
            "internationalization2",
            "@me",
            "@someone",
            "left-pad@1.2.3",
            "wp-login.php",
            ".env",
            "%E3%81%82%E3%81%84",
            "100%",
            "100%25",
            "100%2525",
            "a%2520b",
            "10.0.0.1_8000",
            "%zz",
            "openapi.json",
            "apple-touch-icon-precomposed.png",
            "jquery-3.7.1.min.js",
        ] {
            assert_eq!(shape(text), Shape::Plain, "{text}");
        }
    }

    /// Ids of the usual kinds are told by their kind.
    #[test]
    fn tells_ids() {
        for (text, want) in [
            ("0", Shape::Number),
            ("12345678901234567890123", Shape::Number),
            ("-7", Shape::Number),
            ("6f1c9e0a-3f6b-4f0e-9a3e-0c3a3f2b1d4e", Shape::Uuid),
            ("6F1C9E0A-3F6B-4F0E-9A3E-0C3A3F2B1D4E", Shape::Uuid),
            ("d3cad15f", Shape::Hash),
            ("5f4dcc3b5aa765d61d8327de", Shape::Hash),
            ("2024-02-29", Shape::Date),
            ("2024-02-29T12:30:00Z", Shape::Date),
            ("2024-02-29T12%3A30%3A00.5+01%3A00", Shape::Date),
            // Snowflakes and timestamps are numbers, not cards.
            ("1234567890123", Shape::Number),
            ("1733054400000", Shape::Number),
            ("175928847299117063", Shape::Number),
        ] {
            assert_eq!(shape(text), want, "{text}");
        }
        assert_eq!(shape("2024-13-01"), Shape::Plain);
    }

    /// Secrets are seen, hidden behind percent-encoding or file extensions too.
    #[test]
    fn tells_secrets() {
        for (text, want) in [
            ("alice@example.com", Secret::Email),
            ("alice%40example.com", Secret::Email),
            ("alice%2Bbob%40mail.example.co.uk.json", Secret::Email),
            ("user:pa55@db", Secret::Email),
            ("4111111111111111", Secret::Card),
            ("4111-1111-1111-1111", Secret::Card),
            ("4111_1111_1111_1111", Secret::Card),
            ("7-4111111111111111", Secret::Card),
            ("4111111111111111-2", Secret::Card),
            ("2024.4111 1111 1111 1111.99", Secret::Card),
            ("1-2-3-4111+1111+1111+1111-4-5", Secret::Card),
            ("order_17_4111111111111111_2024_01_31", Secret::Card),
            ("alice%2540example.com", Secret::Email),
            ("alice%25252540example.com", Secret::Email),
            ("%2534111111111111111", Secret::Card),
            ("id:eyJhbGciOiJub25lIn0.e30", Secret::Token),
            ("%252525252525252541", Secret::Token),
            ("card_4111%201111%201111%201111.pdf", Secret::Card),
            ("378282246310005", Secret::Card),
            ("5555555555554444", Secret::Card),
            (
                "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
                Secret::Token,
            ),
            (
                "eyJhbGciOiJIUzI1NiJ9%2EeyJzdWIiOiIxIn0%2Edozjg",
                Secret::Token,
            ),
            ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", Secret::Token),
            // Put together here, so that no scanner takes it for a leaked key.
            (
                concat!("sk_", "live_51H8xJ2eZvKYlo2C0a1b2C3d"),
                Secret::Token,
            ),
            ("reset-Zm9vYmFyYmF6cXV4MTIzNDU2.html", Secret::Token),
            ("d41d8cd98f00b204e9800998ecf8427e", Secret::Token),
            ("JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP", Secret::Token),
        ] {
            assert_eq!(shape(text), Shape::Secret(want), "{text}");
        }
        assert_eq!(shape(&"a-".repeat(100)), Shape::Secret(Secret::Token));
        assert_eq!(shape(&"%41".repeat(500)), Shape::Secret(Secret::Token));
    }

    /// One digit off, and it is no card.
    #[test]
    fn checks_the_last_digit_of_cards() {
        assert_eq!(shape("4111111111111112"), Shape::Number);
        // Checks, but nobody issues it.
        assert_eq!(shape("1111111111111117"), Shape::Number);
    }

    proptest! {
        /// What is told of a short piece in one pass is what a closer look tells.
        #[test]
        fn obvious_pieces(
            word in "[a-zA-F0-9._@%-]{0,16}",
            digits in "[0-9]{0,16}",
            hex in "[0-9a-f]{0,16}",
            escaped in "(%25|%40|[a-z0-9@%.]){0,6}",
            any in "\\PC{0,16}",
        ) {
            for text in [word, digits, hex, escaped, any] {
                let looked = looked_at(&text);
                prop_assert!(obvious(text.as_bytes()).is_none_or(|shape| shape == looked), "{}", text);
                prop_assert_eq!(is_secret(&text), matches!(looked, Shape::Secret(_)), "{}", text);
            }
        }

        /// Any text has a shape.
        #[test]
        fn never_panics(text in "\\PC*", more in any::<String>()) {
            let _ = shape(&text);
            let _ = shape(&more);
        }
    }

    /// What `secrets.token_urlsafe` and its like make is seen, but for one in a thousand; but for eight
    /// in a thousand where it is as short as 24 characters.
    #[test]
    fn sees_random_tokens() {
        const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut rng = fastrand::Rng::with_seed(7);
        for (alphabet, length, most) in [
            (BASE64, 43, 10),
            (BASE64, 32, 10),
            (&BASE64[..62], 24, 80),
            (b"abcdefghijklmnopqrstuvwxyz0123456789", 24, 80),
            (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 32, 30),
            (b"0123456789abcdef", 64, 0),
        ] {
            let missed = (0..10_000)
                .map(|_| -> String {
                    (0..length)
                        .map(|_| char::from(alphabet[rng.usize(..alphabet.len())]))
                        .collect()
                })
                .filter(|text| !matches!(shape(text), Shape::Secret(_)))
                .count();
            assert!(
                missed <= most,
                "{missed} of 10000 missed, {length} characters of {}",
                alphabet.len()
            );
        }
    }
}
