//! The routes of a service that were folded from paths, with names given way to a placeholder where there are too many
//! of them: `/users/alice`, `/users/bob` and a hundred others are `/users/{name}`.

use std::hash::{Hash as _, Hasher as _};

use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

/// How many names may stand in one place of a service's routes. What an API has side by side are fewer, and what people
/// or machines call things are more, sooner or later.
const LITERALS_MAX: u32 = 100;

/// What stands for them.
const NAME: &str = "{name}";

/// The folded routes of a service.
#[derive(Debug, Default)]
pub(super) struct Literals {
    known: FxHashSet<Box<str>>,
    /// Hashes of all beginnings of what is known that end with a name: two that are the same make for a count that is
    /// too low.
    nodes: FxHashSet<u64>,
    /// How many names follow a beginning that ends with `/`, by its hash.
    children: FxHashMap<u64, u32>,
    /// The beginnings after which a name gives way.
    crowded: FxHashSet<Box<str>>,
}

impl Literals {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether a route, as [`Self::place`] wrote it, is one of them.
    pub(super) fn contains(&self, route: &str) -> bool {
        self.known.contains(route)
    }

    /// Writes a folded path with placeholders for the names that give way.
    pub(super) fn place(&self, folded: &str, out: &mut String) {
        if self.crowded.is_empty() {
            out.push_str(folded);
            return;
        }
        let start = out.len();
        for (n, segment) in folded.split('/').enumerate() {
            if n > 0 {
                out.push('/');
            }
            let gives_way = is_name(segment) && self.crowded.contains(&out[start..]);
            out.push_str(if gives_way { NAME } else { segment });
        }
    }

    /// Takes another route, as [`Self::place`] wrote it; whether names give way from now on that did not, so that it may
    /// have another place.
    pub(super) fn insert(&mut self, route: &str) -> bool {
        let mut crowded = self.add(route);
        let has_changed = crowded.is_some();
        while let Some(beginning) = crowded {
            self.crowded.insert(beginning);
            self.nodes.clear();
            self.children.clear();
            let mut placed = String::new();
            crowded = None;
            // What falls together may be too many behind it.
            for route in std::mem::take(&mut self.known) {
                placed.clear();
                self.place(&route, &mut placed);
                crowded = self.add(&placed).or(crowded);
            }
        }
        has_changed
    }

    /// Takes a route; a beginning after which there are too many names by now, if there is one.
    fn add(&mut self, route: &str) -> Option<Box<str>> {
        if !self.known.insert(route.into()) {
            return None;
        }
        let mut crowded = None;
        for (slash, _) in route.match_indices('/') {
            let (beginning, rest) = route.split_at(slash + 1);
            let segment = rest.split('/').next().unwrap_or_default();
            let node = &route[..beginning.len() + segment.len()];
            if !is_name(segment) || !self.nodes.insert(hash(node)) {
                continue;
            }
            let names = self.children.entry(hash(beginning)).or_default();
            *names += 1;
            if *names > LITERALS_MAX {
                crowded = Some(beginning.into());
            }
        }
        crowded
    }
}

/// Neither nothing nor a placeholder.
fn is_name(segment: &str) -> bool {
    !segment.is_empty() && !segment.starts_with('{')
}

fn hash(text: &str) -> u64 {
    let mut hasher = FxHasher::default();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a service of these paths is asked about, one after the other.
    fn routes(paths: impl IntoIterator<Item = String>) -> (Literals, Vec<String>) {
        let mut literals = Literals::default();
        let mut places = Vec::new();
        for path in paths {
            let mut place = String::new();
            literals.place(&path, &mut place);
            if !literals.contains(&place) && literals.insert(&place) {
                place.clear();
                literals.place(&path, &mut place);
            }
            places.push(place);
        }
        (literals, places)
    }

    /// A hundred names in one place stay; one more, and they share a name, those of before too, and so does what stands
    /// behind each of them. What stands beside them stays.
    #[test]
    fn names_give_way() {
        let users = (0..LITERALS_MAX).flat_map(|n| {
            let user = format!("/users/u{n}");
            [format!("{user}/orders"), user]
        });
        let beside = ["/users", "/users/", "/login", "/users/{id}"].map(str::to_owned);
        let all = users.chain(beside.clone());
        let (literals, _) = routes(all.clone());
        assert_eq!(literals.len(), 2 * LITERALS_MAX as usize + 4);
        let (literals, places) = routes(all.chain(["/users/zoe/orders".to_owned()]));
        assert_eq!(
            places.last().map(String::as_str),
            Some("/users/{name}/orders")
        );
        let mut known: Vec<_> = literals.known.iter().map(|route| &**route).collect();
        known.sort_unstable();
        let wanted = [
            "/login",
            "/users",
            "/users/",
            "/users/{id}",
            "/users/{name}",
            "/users/{name}/orders",
        ];
        assert_eq!(known, wanted);
    }

    /// Names in two places, none of which is crowded for any single name in the other, give way in both.
    #[test]
    fn two_places() {
        let paths = (0..5000).map(|n| format!("/s/a{}/t/b{}", n % 71, n % 73));
        let (literals, _) = routes(paths);
        assert_eq!(literals.len(), 5000);
        let paths = (0..20_000).map(|n| format!("/s/a{}/t/b{}", n % 101, n % 103));
        let (literals, places) = routes(paths);
        assert_eq!(literals.len(), 1);
        assert_eq!(
            places.last().map(String::as_str),
            Some("/s/{name}/t/{name}")
        );
    }

    proptest! {
        /// Whatever is asked, what was placed stays where it is, and no place has more names than are allowed.
        #[test]
        fn placed_once(paths in proptest::collection::vec("(/[a-z{}]{0,2}){0,3}", 0..400)) {
            let (literals, places) = routes(paths);
            for place in places {
                let (mut once, mut twice) = (String::new(), String::new());
                literals.place(&place, &mut once);
                literals.place(&once, &mut twice);
                prop_assert!(literals.contains(&once), "{once}");
                prop_assert_eq!(once, twice);
            }
            prop_assert!(literals.children.values().all(|names| *names <= LITERALS_MAX));
        }
    }
}
