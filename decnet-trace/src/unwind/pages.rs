//! Which rows of the chunks are taken.

use decnet_trace_common::unwind::CHUNK_ROWS;

/// How many rows a page has.
pub(super) const PAGE_ROWS: usize = 512;

/// How many pages a chunk has: as many as a word has bits.
const CHUNK_PAGES: u32 = 64;

const _: () = assert!(CHUNK_PAGES as usize * PAGE_ROWS == CHUNK_ROWS);

/// Pages of one chunk that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) chunk: u32,
    pub(super) first: u32,
    pub(super) pages: u32,
}

impl Run {
    /// The first row in the chunk.
    pub(super) const fn first_row(self) -> usize {
        self.first as usize * PAGE_ROWS
    }

    /// How many rows have room.
    pub(super) const fn rows(self) -> usize {
        self.pages as usize * PAGE_ROWS
    }

    const fn bits(self) -> u64 {
        (u64::MAX >> (CHUNK_PAGES - self.pages)) << self.first
    }
}

/// The pages of all chunks.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// A bit for each free page of each chunk there is.
    free: Vec<u64>,
}

impl Pages {
    /// How many chunks there are.
    pub(super) fn chunks(&self) -> u32 {
        self.free.len() as u32
    }

    /// Takes room for so many rows, in as few runs as there can be, with at most `chunks_max` chunks.
    pub(super) fn take(&mut self, rows: usize, chunks_max: u32) -> Option<Vec<Run>> {
        let mut need = u32::try_from(rows.div_ceil(PAGE_ROWS)).ok()?;
        let free: u32 = self.free.iter().map(|bits| bits.count_ones()).sum();
        let unmade = chunks_max.saturating_sub(self.chunks()) * CHUNK_PAGES;
        if need > free + unmade {
            return None;
        }
        let mut runs = Vec::new();
        while need > 0 {
            let want = need.min(CHUNK_PAGES);
            let mut run = self.longest(want);
            if run.is_none_or(|run| run.pages < want) && self.chunks() < chunks_max {
                run = Some(Run {
                    chunk: self.chunks(),
                    first: 0,
                    pages: want,
                });
                self.free.push(u64::MAX);
            }
            let run = run?;
            self.free[run.chunk as usize] &= !run.bits();
            need -= run.pages;
            runs.push(run);
        }
        Some(runs)
    }

    /// Gives pages back.
    pub(super) fn give_back(&mut self, run: Run) {
        self.free[run.chunk as usize] |= run.bits();
    }

    /// The longest run of free pages, of at most so many.
    fn longest(&self, most: u32) -> Option<Run> {
        let mut best: Option<Run> = None;
        for (chunk, &bits) in self.free.iter().enumerate() {
            let mut at = 0;
            while at < CHUNK_PAGES {
                at += (bits >> at).trailing_zeros().min(CHUNK_PAGES - at);
                if at == CHUNK_PAGES {
                    break;
                }
                let pages = (bits >> at).trailing_ones();
                if best.is_none_or(|best| best.pages < pages.min(most)) {
                    best = Some(Run {
                        chunk: chunk as u32,
                        first: at,
                        pages: pages.min(most),
                    });
                }
                at += pages;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::*;

    /// Room is taken side by side where it can be, across chunks where it must be, and not beyond the limit.
    #[test]
    fn takes_few_runs() {
        let mut pages = Pages::default();
        let small = pages.take(1, 2).unwrap();
        assert_eq!((small.len(), small[0].pages, pages.chunks()), (1, 1, 1));
        let large = pages.take(CHUNK_ROWS, 2).unwrap();
        assert_eq!((large.len(), large[0].chunk, pages.chunks()), (1, 1, 2));
        assert_eq!(pages.take(CHUNK_ROWS, 2), None);
        pages.give_back(small[0]);
        let rest = pages.take(CHUNK_ROWS, 2).unwrap();
        assert_eq!((rest.len(), rest[0].chunk, rest[0].first), (1, 0, 0));
    }

    proptest! {
        /// Whatever is taken and given back, no page is taken twice, and each taking has the room it asked for.
        #[test]
        fn no_page_is_taken_twice(steps in prop::collection::vec((any::<bool>(), 1usize..100_000), 1..60)) {
            let mut pages = Pages::default();
            let mut held: Vec<Vec<Run>> = Vec::new();
            for (take, size) in steps {
                if take {
                    if let Some(runs) = pages.take(size, 6) {
                        prop_assert!(runs.iter().map(|run| run.rows()).sum::<usize>() >= size);
                        held.push(runs);
                    }
                } else if !held.is_empty() {
                    for run in held.swap_remove(size % held.len()) {
                        pages.give_back(run);
                    }
                }
                let mut taken = [0u64; 6];
                for run in held.iter().flatten() {
                    prop_assert_eq!(taken[run.chunk as usize] & run.bits(), 0);
                    taken[run.chunk as usize] |= run.bits();
                }
            }
        }
    }
}
