//! What can be seen of the bytes that one socket operation moved.
//!
//! The kernel side copies heads, but of bodies only the first and the last bytes. So the stream of a
//! connection arrives as runs of visible bytes with gaps of known length between them.

use decnet_trace_common::event::{SockOp, flags};

/// The most bytes that an operation without payload shows: its first and its last eight.
const ENDS: usize = 16;

/// Room for the bytes of a short operation; lent to [`Visible::new`] so that it borrows from one place.
pub type Scratch = [u8; ENDS];

/// The bytes of one operation that were not consumed yet: visible ones, then a gap, then visible ones.
#[derive(Clone, Copy, Debug)]
pub struct Visible<'a> {
    front: &'a [u8],
    gap: u64,
    back: &'a [u8],
}

impl<'a> Visible<'a> {
    /// What is visible of an operation that moved bytes ([`SockOp::ret`] > 0) and of its payload.
    ///
    /// Takes nothing on trust: a payload longer than what moved is cut, and so is the tail.
    pub fn new(op: &'a SockOp, payload: &'a [u8], scratch: &'a mut Scratch) -> Self {
        let moved = usize::try_from(op.ret).unwrap_or(0);
        if op.flags & flags::UNREAD != 0 {
            return Self {
                front: &[],
                gap: moved as u64,
                back: &[],
            };
        }
        let tail_len = usize::from(op.tail_len).min(op.tail.len());
        let tail = &op.tail[op.tail.len() - tail_len..];
        let front = if payload.is_empty() {
            &op.first[..op.first.len().min(moved)]
        } else {
            &payload[..payload.len().min(moved)]
        };
        let left = moved - front.len();
        if left == 0 {
            return Self::of(front);
        }
        if left <= tail.len() && moved <= ENDS {
            // The two ends meet: one piece is simpler to parse than two.
            let all = &mut scratch[..moved];
            all[..front.len()].copy_from_slice(front);
            all[front.len()..].copy_from_slice(&tail[tail.len() - left..]);
            return Self::of(all);
        }
        let back = &tail[tail.len() - tail.len().min(left)..];
        Self {
            front,
            gap: (left - back.len()) as u64,
            back,
        }
        .normal()
    }

    /// Bytes that are all visible.
    pub const fn of(bytes: &'a [u8]) -> Self {
        Self {
            front: bytes,
            gap: 0,
            back: &[],
        }
    }

    /// The visible bytes that come next; empty where the gap comes next.
    pub const fn front(&self) -> &'a [u8] {
        self.front
    }

    /// The visible bytes behind the gap.
    pub const fn back(&self) -> &'a [u8] {
        self.back
    }

    /// Whether nothing is hidden between the visible bytes and those behind.
    pub const fn is_whole(&self) -> bool {
        self.gap == 0
    }

    /// All bytes left, visible or not.
    pub const fn len(&self) -> u64 {
        self.front.len() as u64 + self.gap + self.back.len() as u64
    }

    /// Whether all bytes are consumed.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Consumes up to `count` bytes, visible or not; how many there were.
    pub fn skip(&mut self, count: u64) -> u64 {
        let count = count.min(self.len());
        let mut left = count;
        let from_front = left.min(self.front.len() as u64);
        self.front = &self.front[from_front as usize..];
        left -= from_front;
        let from_gap = left.min(self.gap);
        self.gap -= from_gap;
        left -= from_gap;
        self.back = &self.back[left as usize..];
        *self = self.normal();
        count
    }

    /// Consumes everything.
    pub fn skip_all(&mut self) -> u64 {
        self.skip(self.len())
    }

    /// Consumes the next byte if it is visible.
    pub fn next_visible(&mut self) -> Option<u8> {
        let byte = *self.front.first()?;
        self.skip(1);
        Some(byte)
    }

    /// With the bytes behind a gap that is used up moved to the front.
    const fn normal(self) -> Self {
        if self.front.is_empty() && self.gap == 0 {
            Self::of(self.back)
        } else {
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(bytes: &[u8], flags: u16) -> SockOp {
        let mut op = SockOp {
            ret: bytes.len() as i32,
            flags,
            ..SockOp::default()
        };
        let ends = bytes.len().min(8);
        op.first[..ends].copy_from_slice(&bytes[..ends]);
        op.tail[8 - ends..].copy_from_slice(&bytes[bytes.len() - ends..]);
        op.tail_len = ends as u16;
        op
    }

    /// Up to sixteen bytes are visible without any payload.
    #[test]
    fn short_operations_are_visible_whole() {
        let bytes: Vec<u8> = (0..16).collect();
        for len in 1..=16 {
            let op = op(&bytes[..len], 0);
            let mut scratch = Scratch::default();
            let seen = Visible::new(&op, &[], &mut scratch);
            assert_eq!(seen.front(), &bytes[..len]);
            assert!(seen.is_whole());
        }
    }

    /// Of a longer operation without payload both ends are visible, with the right gap between.
    #[test]
    fn long_operations_show_their_ends() {
        let bytes: Vec<u8> = (0..100).collect();
        let op = op(&bytes, 0);
        let mut scratch = Scratch::default();
        let mut seen = Visible::new(&op, &[], &mut scratch);
        assert_eq!(
            (seen.front(), seen.len(), seen.is_whole()),
            (&bytes[..8], 100, false)
        );
        assert_eq!(seen.skip(50), 50);
        assert_eq!((seen.front(), seen.back()), (&[][..], &bytes[92..]));
        assert_eq!(seen.next_visible(), None);
        assert_eq!(seen.skip(43), 43);
        assert_eq!(seen.next_visible(), Some(93));
        assert_eq!(seen.skip(1000), 6);
        assert!(seen.is_empty());
    }

    /// Behind a payload that was cut off comes a gap, and then the tail.
    #[test]
    fn a_cut_payload_leaves_a_gap() {
        let bytes: Vec<u8> = (0..100).collect();
        let op = op(&bytes, flags::CUT);
        let mut scratch = Scratch::default();
        let seen = Visible::new(&op, &bytes[..40], &mut scratch);
        assert_eq!(
            (seen.front(), seen.len(), seen.back()),
            (&bytes[..40], 100, &bytes[92..])
        );
        let mut scratch = Scratch::default();
        let mut seen = Visible::new(&op, &bytes[..95], &mut scratch);
        assert!(seen.is_whole());
        assert_eq!(seen.skip(95), 95);
        assert_eq!(seen.front(), &bytes[95..]);
    }

    /// A record that contradicts itself is cut to what it may hold.
    #[test]
    fn lies_are_cut() {
        let mut lie = op(b"abc", flags::HEAD);
        lie.tail_len = 200;
        let mut scratch = Scratch::default();
        let seen = Visible::new(&lie, b"abcdefgh", &mut scratch);
        assert_eq!((seen.front(), seen.len()), (&b"abc"[..], 3));
        lie.ret = -5;
        assert!(Visible::new(&lie, b"abc", &mut Scratch::default()).is_empty());
        let mut unread = op(b"", flags::UNREAD);
        unread.ret = i32::MAX;
        let mut scratch = Scratch::default();
        let mut seen = Visible::new(&unread, &[], &mut scratch);
        assert_eq!(seen.front(), b"");
        assert_eq!(seen.skip_all(), u64::from(i32::MAX.unsigned_abs()));
    }
}
