use proptest::prelude::*;

use decnet_trace_common::event::SockOp;

use super::*;
use crate::protocol::visible::Scratch;

/// A bare operation: its first and last eight bytes are visible.
fn op(bytes: &[u8]) -> SockOp {
    let mut op = SockOp {
        ret: bytes.len() as i32,
        ..SockOp::default()
    };
    let ends = bytes.len().min(8);
    op.first[..ends].copy_from_slice(&bytes[..ends]);
    op.tail[8 - ends..].copy_from_slice(&bytes[bytes.len() - ends..]);
    op.tail_len = ends as u16;
    op
}

/// Feeds one operation; what is left over, and the progress.
fn feed(body: &mut Body, bytes: &[u8]) -> (u64, Progress) {
    let op = op(bytes);
    let mut scratch = Scratch::default();
    let mut seen = Visible::new(&op, &[], &mut scratch);
    let progress = body.advance(&mut seen);
    (seen.len(), progress)
}

fn chunked() -> Body {
    Body::Chunks(Chunks::Start)
}

/// A length is counted across operations, and what lies behind it is left alone; gigabytes fit.
#[test]
fn lengths() {
    let mut body = Body::Length(6_000_000_000);
    for _ in 0..3 {
        let mut op = op(&[1; 100]);
        op.ret = 2_000_000_000;
        let mut scratch = Scratch::default();
        let mut seen = Visible::new(&op, &[], &mut scratch);
        assert_eq!(body.advance(&mut seen).bytes, 2_000_000_000);
    }
    assert_eq!(body, Body::Length(0));
    let mut body = Body::Length(50);
    assert_eq!(
        feed(&mut body, &[0; 40]).1,
        Progress {
            bytes: 40,
            ended: false
        }
    );
    assert_eq!(
        feed(&mut body, &[0; 40]),
        (
            30,
            Progress {
                bytes: 10,
                ended: true
            }
        )
    );
}

/// Chunks as servers write them, one per operation, are followed exactly though their data is out of
/// sight; the last chunk ends the body at its very byte.
#[test]
fn chunks_per_operation() {
    let mut body = chunked();
    let chunk = [b"3e8\r\n".to_vec(), vec![b'x'; 1000], b"\r\n".to_vec()].concat();
    for _ in 0..5 {
        assert_eq!(
            feed(&mut body, &chunk).1,
            Progress {
                bytes: 1007,
                ended: false
            }
        );
        assert_eq!(body, chunked());
    }
    assert_eq!(
        feed(&mut body, b"0\r\n\r\nHTTP"),
        (
            4,
            Progress {
                bytes: 5,
                ended: true
            }
        )
    );
}

/// Extensions, leading zeros, capital digits, bare line feeds and trailers.
#[test]
fn unusual_chunks() {
    for text in [
        "5;a=b\r\nhello\r\n0\r\n\r\n",
        "0005\r\nhello\r\n000;x\r\n\r\n",
        "A \r\n0123456789\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "5\r\nhello\r\n0\r\nX: y\r\nZ: \r\n\r\n",
        "0\r\n\r\n",
    ] {
        let mut body = chunked();
        let mut ended = false;
        for byte in text.as_bytes() {
            assert!(!ended, "{text:?}");
            ended = feed(&mut body, &[*byte]).1.ended;
        }
        assert!(ended, "{text:?}");
    }
}

/// When sizes are out of sight, the end shows in the last bytes, however they are cut.
#[test]
fn tails() {
    let text = [&b"5\r\nhello\r\n64\r\n"[..], &[b'y'; 100], b"\r\n0\r\n\r\n"].concat();
    let mut whole = chunked();
    assert!(!feed(&mut whole, &text).1.ended);
    assert!(matches!(whole, Body::Tail(tail) if tail.may_be_end()));
    for cut in text.len() - 6..text.len() {
        let mut body = chunked();
        feed(&mut body, &text[..cut]);
        assert!(
            matches!(body, Body::Tail(tail) if !tail.may_be_end()),
            "{cut}"
        );
        feed(&mut body, &text[cut..]);
        assert!(
            matches!(body, Body::Tail(tail) if tail.may_be_end()),
            "{cut}"
        );
        feed(&mut body, b"x");
        assert!(
            matches!(body, Body::Tail(tail) if !tail.may_be_end()),
            "{cut}"
        );
    }
}

/// Trailers out of sight end with an empty line.
#[test]
fn trailers_out_of_sight() {
    let mut body = chunked();
    feed(&mut body, b"0\r\n");
    feed(&mut body, b"X-Checksum: 0123456789abcdef\r\n\r\n");
    assert!(matches!(body, Body::Tail(tail) if tail.may_be_end()));
}

/// A vectored write of which not even the tail was readable: its length alone tells its end.
#[test]
fn lengths_tell_the_end_of_chunks() {
    let chunk = [b"3e8\r\n".to_vec(), vec![b'x'; 1000], b"\r\n".to_vec()].concat();
    for (last, ended) in [(&b""[..], false), (b"0\r\n\r\n", true)] {
        let mut op = op(&[&chunk, last].concat());
        op.tail_len = 0;
        let mut scratch = Scratch::default();
        let mut seen = Visible::new(&op, &[], &mut scratch);
        let mut body = chunked();
        let bytes = seen.len();
        assert_eq!(body.advance(&mut seen), Progress { bytes, ended });
        assert_eq!(
            body,
            if ended {
                Body::Chunks(Chunks::DataEnd)
            } else {
                chunked()
            }
        );
    }
}

/// What is no chunk leads to the tail rule, not to a wrong count.
#[test]
fn no_chunks() {
    for text in [
        "\r\nxx",
        "hello",
        "5\r\nhelloX",
        "11111111111111111\r\n",
        "-1\r\n",
    ] {
        let mut body = chunked();
        for byte in text.as_bytes() {
            assert!(!feed(&mut body, &[*byte]).1.ended);
        }
        assert!(matches!(body, Body::Tail(_)), "{text:?}: {body:?}");
    }
}

proptest! {
    /// A chunked body of any chunks, cut anywhere, ends at its last byte, exactly or by its tail, and
    /// at no byte before unless the tail looks like an end.
    #[test]
    fn any_chunks_any_cuts(
        chunks in proptest::collection::vec(1usize..300, 0..8),
        cuts in proptest::collection::vec(1usize..400, 1..40),
    ) {
        let mut text = Vec::new();
        for len in chunks {
            text.extend_from_slice(format!("{len:x}\r\n").as_bytes());
            text.extend(std::iter::repeat_n(b'.', len));
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\n\r\n");
        let mut body = chunked();
        let (mut at, mut counted) = (0, 0);
        for cut in cuts.into_iter().cycle() {
            let to = (at + cut).min(text.len());
            let (left, progress) = feed(&mut body, &text[at..to]);
            prop_assert_eq!(left, 0);
            counted += progress.bytes;
            at = to;
            let tail = matches!(body, Body::Tail(tail) if tail.may_be_end());
            prop_assert_eq!(progress.ended || tail, at == text.len());
            if at == text.len() {
                break;
            }
        }
        prop_assert_eq!(counted, text.len() as u64);
    }

    /// Arbitrary bytes never panic; every byte is either consumed or behind the end.
    #[test]
    fn arbitrary_bytes(ops in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..60), 1..20)) {
        let mut body = chunked();
        for bytes in ops {
            let (left, progress) = feed(&mut body, &bytes);
            prop_assert_eq!(left + progress.bytes, bytes.len() as u64);
            if progress.ended {
                break;
            }
            prop_assert_eq!(left, 0);
        }
    }
}
