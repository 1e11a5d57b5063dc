//! The spans of a trace as a tree.

use rustc_hash::{FxHashMap, FxHashSet};

use super::StoredSpan;

/// A trace: its spans, each under its parent, and all of one parent by the time they began.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The spans, in the order in which they are shown.
    pub nodes: Vec<Node>,
    /// When it begins, in nanoseconds since the Unix epoch: with the first span, or when that arrived,
    /// where that is known.
    pub start: u64,
    /// When its last span ends.
    pub end: u64,
}

/// A span in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The span.
    pub span: StoredSpan,
    /// For each ancestor below the root, and for the span itself, whether it is the last of its
    /// parent's; empty for a root.
    pub is_last: Vec<bool>,
}

impl Trace {
    /// Puts spans of one trace together, whatever order they come in. A span whose parent is not among
    /// them is a root.
    pub fn new(mut spans: Vec<StoredSpan>) -> Self {
        spans.sort_by_key(|span| (span.start, std::cmp::Reverse(span.duration), span.id));
        let ids: FxHashMap<[u8; 8], usize> = spans
            .iter()
            .enumerate()
            .rev()
            .map(|(at, span)| (span.span_id, at))
            .collect();
        let mut children: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
        let mut roots = Vec::new();
        for (at, span) in spans.iter().enumerate() {
            let parent = span.parent_id.and_then(|parent| ids.get(&parent));
            match parent.filter(|&&parent| parent != at) {
                Some(&parent) => children.entry(parent).or_default().push(at),
                None => roots.push(at),
            }
        }
        let start = spans
            .iter()
            .map(|span| span.start.saturating_sub(span.queue().unwrap_or(0)))
            .min()
            .unwrap_or(0);
        let end = spans.iter().map(StoredSpan::end).max().unwrap_or(0);
        let order = order(&roots, &children, spans.len());
        let mut spans: Vec<Option<StoredSpan>> = spans.into_iter().map(Some).collect();
        let nodes = order
            .into_iter()
            .filter_map(|(at, is_last)| {
                Some(Node {
                    span: spans[at].take()?,
                    is_last,
                })
            })
            .collect();
        Self { nodes, start, end }
    }

    /// The time between its begin and its end, in nanoseconds.
    pub fn duration(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// Depth first. Spans that are each other's parents belong to no root, and come last, as roots.
fn order(
    roots: &[usize],
    children: &FxHashMap<usize, Vec<usize>>,
    count: usize,
) -> Vec<(usize, Vec<bool>)> {
    let mut order = Vec::with_capacity(count);
    let mut seen = FxHashSet::default();
    for &root in roots.iter().chain(&(0..count).collect::<Vec<_>>()) {
        let mut stack = vec![(root, Vec::new())];
        while let Some((at, is_last)) = stack.pop() {
            if !seen.insert(at) {
                continue;
            }
            let below = children.get(&at).map_or(&[][..], Vec::as_slice);
            for (nth, &child) in below.iter().enumerate().rev() {
                let mut path: Vec<bool> = is_last.clone();
                path.push(nth + 1 == below.len());
                stack.push((child, path));
            }
            order.push((at, is_last));
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(id: u8, parent: Option<u8>, start: u64) -> StoredSpan {
        StoredSpan {
            id: i64::from(id),
            trace_id: [1; 16],
            span_id: [id; 8],
            parent_id: parent.map(|parent| [parent; 8]),
            parent_is_remote: false,
            is_request: parent.is_none(),
            service: "s".into(),
            pid: 1,
            name: id.to_string(),
            kind: "server".into(),
            start,
            duration: 10,
            status: None,
            error: None,
            attributes: serde_json::Map::new(),
            trace_state: String::new(),
        }
    }

    fn shown(trace: &Trace) -> Vec<(i64, usize)> {
        let nodes = trace.nodes.iter();
        nodes
            .map(|node| (node.span.id, node.is_last.len()))
            .collect()
    }

    /// Children stand under their parents by the time they began, in whatever order all of them come; a
    /// child of a stranger is a root.
    #[test]
    fn builds_a_tree() {
        let spans = vec![
            span(4, Some(2), 5),
            span(3, Some(1), 7),
            span(2, Some(1), 3),
            span(9, Some(77), 30),
            span(1, None, 1),
        ];
        let mut backwards = spans.clone();
        backwards.reverse();
        for spans in [spans, backwards] {
            let trace = Trace::new(spans);
            assert_eq!(shown(&trace), [(1, 0), (2, 1), (4, 2), (3, 1), (9, 0)]);
            assert_eq!((trace.start, trace.end), (1, 40));
            assert_eq!(trace.nodes[2].is_last, [false, true]);
        }
    }

    proptest! {
        /// Whatever ids and parents spans have, loops too, each is shown once.
        #[test]
        fn shows_each_span_once(links in prop::collection::vec((0..12_u8, prop::option::of(0..12_u8)), 0..40)) {
            let spans: Vec<_> = links
                .iter()
                .enumerate()
                .map(|(at, &(id, parent))| StoredSpan { id: at as i64, ..span(id, parent, at as u64) })
                .collect();
            let mut ids: Vec<_> = Trace::new(spans).nodes.iter().map(|node| node.span.id).collect();
            ids.sort_unstable();
            prop_assert_eq!(ids, (0..links.len() as i64).collect::<Vec<_>>());
        }
    }
}
