//! Routes: paths of low cardinality.
//!
//! A path's route is known in one of three ways. A pattern of the configuration comes first. Then a
//! template learned from the service (what its framework was told): [`Routes::learn`] takes it. Without
//! either, the path is folded: segments that look like ids give way to placeholders, and so do names of which
//! there are too many in one place. Folded or not, a service has a bounded number of routes, and what comes
//! after shares one name.

use globset::GlobMatcher;
use rustc_hash::FxHashMap;

use super::{
    fold::fold,
    literals::Literals,
    template::{Template, decoded},
};

/// The name of all routes beyond a service's bound.
pub const OVERFLOW: &str = "{overflow}";

/// The most services with routes of their own; services beyond share one table.
const SERVICES_MAX: usize = 256;

/// The most templates that one service teaches.
const TEMPLATES_MAX: usize = 4096;

/// How a route was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// A pattern of the configuration.
    Configured(&'a str),
    /// A template of the service's own.
    Learned(&'a str),
    /// Folded from the path.
    Folded(&'a str),
    /// The service has too many routes: [`OVERFLOW`].
    Overflow,
    /// The service itself said that there is no such path, and no other request showed otherwise.
    Unknown,
}

impl<'a> Route<'a> {
    /// The name, where there is one.
    pub fn name(self) -> Option<&'a str> {
        match self {
            Self::Configured(name) | Self::Learned(name) | Self::Folded(name) => Some(name),
            Self::Overflow => Some(OVERFLOW),
            Self::Unknown => None,
        }
    }

    /// The value of `decnet.route.source`.
    pub fn source(self) -> Option<&'static str> {
        match self {
            Self::Configured(_) => Some("configured"),
            Self::Learned(_) => Some("learned"),
            Self::Folded(_) => Some("folded"),
            Self::Overflow => Some("overflow"),
            Self::Unknown => None,
        }
    }
}

/// Patterns of the configuration, and the services they are for.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// The services; all without one.
    pub service: Option<GlobMatcher>,
    /// The templates, in the order in which they are tried.
    pub templates: Vec<Template>,
}

/// The routes of all services.
#[derive(Debug)]
pub struct Routes {
    max: usize,
    patterns: Vec<Pattern>,
    services: FxHashMap<Box<str>, Service>,
    others: Service,
    scratch: String,
    /// A path folded, before names give way.
    plain: String,
    last: Last,
}

/// What was asked last, and its answer: each request is asked about twice, once to be counted and once to
/// become a span.
#[derive(Debug, Default)]
struct Last {
    service: String,
    method: String,
    path: String,
    foldable: String,
    missing: bool,
    found: Option<Found>,
}

/// A route, by where it stands.
#[derive(Clone, Copy, Debug)]
enum Found {
    /// A template of a pattern, by their places.
    Configured(usize, usize),
    /// A template of the service, by its place.
    Learned(usize),
    /// In [`Routes::scratch`].
    Folded,
    Overflow,
    Unknown,
}

impl Last {
    fn is(&self, asked: &Asked<'_>) -> bool {
        self.path == asked.path
            && self.service == asked.service
            && self.method == asked.method
            && self.foldable == asked.foldable
            && self.missing == asked.missing
    }

    fn put(&mut self, asked: &Asked<'_>, found: Found) {
        for (kept, asked) in [
            (&mut self.service, asked.service),
            (&mut self.method, asked.method),
            (&mut self.path, asked.path),
            (&mut self.foldable, asked.foldable),
        ] {
            kept.clear();
            kept.push_str(asked);
        }
        self.missing = asked.missing;
        self.found = Some(found);
    }
}

/// The parameters of [`Routes::find`].
#[derive(Clone, Copy)]
struct Asked<'a> {
    service: &'a str,
    method: &'a str,
    path: &'a str,
    foldable: &'a str,
    missing: bool,
}

#[derive(Debug, Default)]
struct Service {
    learned: Vec<Template>,
    folded: Literals,
}

impl Routes {
    /// Routes of which no service has more than `max`, configured and learned ones not counted.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            patterns: Vec::new(),
            services: FxHashMap::default(),
            others: Service::default(),
            scratch: String::new(),
            plain: String::new(),
            last: Last::default(),
        }
    }

    /// Takes the configuration's bound and patterns, in place of those before.
    pub fn configure(&mut self, max: usize, patterns: Vec<Pattern>) {
        self.max = max;
        self.patterns = patterns;
        self.last.found = None;
    }

    /// Takes a service's own templates, in the order in which the service tries them, in place of
    /// those before. Templates beyond a bound are left out.
    pub fn learn(&mut self, service: &str, templates: impl IntoIterator<Item = Template>) {
        let learned = templates.into_iter().take(TEMPLATES_MAX).collect();
        service_of(&mut self.services, &mut self.others, service).learned = learned;
        self.last.found = None;
    }

    /// The route of a path; `foldable` is the path without what rules mask. `missing`: the service answered that there is no such path; then only a
    /// route that other requests showed is taken, so that a scan leaves no routes behind.
    pub fn find(
        &mut self,
        service: &str,
        method: &str,
        path: &str,
        foldable: &str,
        missing: bool,
    ) -> Route<'_> {
        let asked = Asked {
            service,
            method,
            path,
            foldable,
            missing,
        };
        let found = match self.last.found {
            Some(found) if self.last.is(&asked) => found,
            _ => {
                let found = self.look(&asked);
                self.last.put(&asked, found);
                found
            }
        };
        match found {
            Found::Configured(pattern, template) => {
                Route::Configured(self.patterns[pattern].templates[template].text())
            }
            Found::Learned(template) => {
                let service = self.services.get(service).unwrap_or(&self.others);
                Route::Learned(service.learned[template].text())
            }
            Found::Folded => Route::Folded(&self.scratch),
            Found::Overflow => Route::Overflow,
            Found::Unknown => Route::Unknown,
        }
    }

    fn look(&mut self, asked: &Asked<'_>) -> Found {
        let service = asked.service;
        let of_service = service_of(&mut self.services, &mut self.others, service);
        if !self.patterns.is_empty() || !of_service.learned.is_empty() {
            let path = decoded(asked.path);
            let mut configured = self
                .patterns
                .iter()
                .enumerate()
                .filter(|(_, p)| p.service.as_ref().is_none_or(|glob| glob.is_match(service)))
                .filter_map(|(at, p)| {
                    let fits = p.templates.iter().position(|t| t.matches(&path));
                    fits.map(|template| (at, template))
                });
            if let Some((pattern, template)) = configured.next() {
                return Found::Configured(pattern, template);
            }
            // Frameworks go on where the path fits but the method does not, and come back to the first
            // such route in the end.
            let learned = of_service.learned.iter().enumerate();
            let mut fits = learned.filter(|(_, t)| t.matches(&path));
            if let Some(first) = fits.next() {
                let exact = [first]
                    .into_iter()
                    .chain(fits)
                    .find(|(_, t)| t.methods().contain(asked.method));
                return Found::Learned(exact.unwrap_or(first).0);
            }
        }
        self.plain.clear();
        fold(asked.foldable, &mut self.plain);
        let known = &mut of_service.folded;
        let (plain, place) = (&self.plain, &mut self.scratch);
        folded(known, plain, place, self.max, asked.missing)
    }

    /// The same where the API that is called is known, and so the route.
    pub(super) fn find_known(&mut self, service: &str, route: &str, missing: bool) -> Route<'_> {
        // What was folded last stood there.
        self.last.found = None;
        let known = &mut service_of(&mut self.services, &mut self.others, service).folded;
        match folded(known, route, &mut self.scratch, self.max, missing) {
            Found::Unknown => Route::Unknown,
            Found::Overflow => Route::Overflow,
            _ => Route::Folded(&self.scratch),
        }
    }
}

/// Writes the place of a path that was folded, as long as there are not too many.
fn folded(
    known: &mut Literals,
    folded: &str,
    place: &mut String,
    max: usize,
    missing: bool,
) -> Found {
    place.clear();
    known.place(folded, place);
    if !known.contains(place) {
        if missing {
            return Found::Unknown;
        }
        if known.len() >= max {
            return Found::Overflow;
        }
        if known.insert(place) {
            place.clear();
            known.place(folded, place);
        }
    }
    Found::Folded
}

fn service_of<'a>(
    services: &'a mut FxHashMap<Box<str>, Service>,
    others: &'a mut Service,
    name: &str,
) -> &'a mut Service {
    if !services.contains_key(name) {
        if services.len() >= SERVICES_MAX {
            return others;
        }
        services.insert(name.into(), Service::default());
    }
    services.get_mut(name).unwrap_or(others)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustc_hash::FxHashSet;

    use super::*;
    use crate::policy::segment::is_secret;

    impl Routes {
        fn get(&mut self, service: &str, path: &str, missing: bool) -> Route<'_> {
            self.find(service, "GET", path, path, missing)
        }
    }

    /// What was found for the last path is found for it alone, and no longer once something is learned.
    #[test]
    fn the_last_answer_is_for_the_same_question() {
        let mut routes = Routes::new(2);
        let find = |routes: &mut Routes, service: &str, method: &str, path: &str, missing| {
            let found = routes.find(service, method, path, path, missing);
            (found.name().map(str::to_owned), found.source())
        };
        let folded = |name: &str| (Some(name.to_owned()), Some("folded"));
        for _ in 0..2 {
            assert_eq!(find(&mut routes, "a", "GET", "/x/1", true), (None, None));
        }
        for path in ["/x/1", "/x/1", "/x/2"] {
            assert_eq!(
                find(&mut routes, "a", "GET", path, false),
                folded("/x/{id}")
            );
        }
        assert_eq!(
            find(&mut routes, "a", "GET", "/x/2", true),
            folded("/x/{id}")
        );
        assert_eq!(find(&mut routes, "b", "GET", "/x/2", true), (None, None));
        assert_eq!(
            find(&mut routes, "a", "GET", "/x/2", false),
            folded("/x/{id}")
        );
        assert_eq!(
            routes.find_known("a", "/docker/{name}", false),
            Route::Folded("/docker/{name}")
        );
        assert_eq!(
            find(&mut routes, "a", "GET", "/x/2", false),
            folded("/x/{id}")
        );
        let templates = ["/x/{n}", "/x/{m}"].into_iter().filter_map(Template::new);
        routes.learn("a", templates);
        let learned = (Some("/x/{n}".to_owned()), Some("learned"));
        for _ in 0..2 {
            assert_eq!(find(&mut routes, "a", "GET", "/x/2", false), learned);
        }
        let patterns = vec![Pattern {
            service: None,
            templates: Template::new("/x/{p}").into_iter().collect(),
        }];
        routes.configure(2, patterns);
        let configured = (Some("/x/{p}".to_owned()), Some("configured"));
        for _ in 0..2 {
            assert_eq!(find(&mut routes, "a", "GET", "/x/2", false), configured);
        }
    }

    /// A service's own templates come before folding, in their order.
    #[test]
    fn learned_templates_come_first() {
        let mut routes = Routes::new(10);
        let templates = [
            "/users/me",
            "/users/{user_id}",
            "/files/{path:path}",
            "/v{version}/x.json",
            "/",
        ];
        routes.learn("svc", templates.into_iter().filter_map(Template::new));
        for (path, want) in [
            ("/users/me", Route::Learned("/users/me")),
            ("/users/you", Route::Learned("/users/{user_id}")),
            ("/users/42", Route::Learned("/users/{user_id}")),
            ("/files/a/b/c", Route::Learned("/files/{path:path}")),
            ("/v7/x.json", Route::Learned("/v{version}/x.json")),
            ("/", Route::Learned("/")),
            ("/users/", Route::Folded("/users/")),
            ("/users/42/x", Route::Folded("/users/{id}/x")),
            ("/users", Route::Folded("/users")),
        ] {
            assert_eq!(routes.get("svc", path, false), want, "{path}");
        }
        // Another service has its own.
        let other = routes.get("other", "/users/you", false);
        assert_eq!(other, Route::Folded("/users/you"));
    }

    /// The configuration's patterns win over what was learned, for the services they are for.
    #[test]
    fn configured_patterns_win() {
        let mut routes = Routes::new(10);
        routes.learn("shop-eu", Template::new("/users/{id}"));
        routes.configure(
            500,
            vec![Pattern {
                service: globset::Glob::new("shop-*")
                    .ok()
                    .map(|glob| glob.compile_matcher()),
                templates: Template::new("/users/{anything:path}")
                    .into_iter()
                    .collect(),
            }],
        );
        let found = routes.get("shop-eu", "/users/7", false);
        assert_eq!(found, Route::Configured("/users/{anything:path}"));
        let other = routes.get("blog", "/users/7", false);
        assert_eq!(other, Route::Folded("/users/{id}"));
    }

    /// Where two routes fit a path, the one that answers the method is taken, else the first.
    #[test]
    fn methods_tell_routes_apart() {
        use crate::policy::template::{Builder, Methods};
        let template = |text: &str, method: &str| {
            let mut builder = Builder::default();
            builder.braces(text);
            builder.build(Methods::default().with(method))
        };
        let mut routes = Routes::new(10);
        let declared = [
            template("/items/{id}", "GET"),
            template("/items/new", "POST"),
        ];
        routes.learn("s", declared.into_iter().flatten());
        for (method, want) in [
            ("GET", "/items/{id}"),
            ("POST", "/items/new"),
            ("PUT", "/items/{id}"),
        ] {
            let found = routes.find("s", method, "/items/new", "/items/new", false);
            assert_eq!(found, Route::Learned(want), "{method}");
        }
    }

    /// Beyond its bound a service's new routes share one name, and the ones before keep theirs.
    #[test]
    fn routes_are_bounded() {
        let mut routes = Routes::new(2);
        assert_eq!(routes.get("s", "/a", false), Route::Folded("/a"));
        assert_eq!(routes.get("s", "/b/1", false), Route::Folded("/b/{id}"));
        assert_eq!(routes.get("s", "/c", false), Route::Overflow);
        assert_eq!(routes.get("s", "/b/2", false), Route::Folded("/b/{id}"));
        assert_eq!(routes.get("t", "/c", false), Route::Folded("/c"));
    }

    /// Names that keep coming share a route, and leave room for others.
    #[test]
    fn names_leave_room() {
        let mut routes = Routes::new(150);
        for n in 0..1000 {
            let user = routes.get("s", &format!("/users/user-{}", name_of(n)), false);
            let wanted = if n < 100 {
                "/users/user-"
            } else {
                "/users/{name}"
            };
            assert!(
                user.name().is_some_and(|name| name.starts_with(wanted)),
                "{user:?}"
            );
        }
        assert_eq!(
            routes.get("s", "/users/zoe", false),
            Route::Folded("/users/{name}")
        );
        assert_eq!(
            routes.get("s", "/users/7", false),
            Route::Folded("/users/{id}")
        );
        assert_eq!(routes.get("s", "/orders", false), Route::Folded("/orders"));
        assert_eq!(routes.get("s", "/users/no/x", true), Route::Unknown);
    }

    /// Letters alone, another name for each number.
    fn name_of(n: u32) -> String {
        n.to_string()
            .bytes()
            .map(|digit| char::from(b'a' + digit - b'0'))
            .collect()
    }

    /// Paths that the service does not have make no routes; items that it does not have keep theirs.
    #[test]
    fn a_scan_leaves_no_routes() {
        let mut routes = Routes::new(10);
        assert_eq!(routes.get("s", "/wp-login.php", true), Route::Unknown);
        assert_eq!(
            routes.get("s", "/items/1", false),
            Route::Folded("/items/{id}")
        );
        assert_eq!(
            routes.get("s", "/items/2", true),
            Route::Folded("/items/{id}")
        );
        assert_eq!(routes.get("s", "/wp-login.php", true), Route::Unknown);
    }

    proptest! {
        /// However many ids there are, a route with them has one name.
        #[test]
        fn ids_make_no_routes(ids in proptest::collection::vec(any::<(u64, u128)>(), 1..50)) {
            let mut routes = Routes::new(1000);
            for (number, uuid) in ids {
                let path = format!("/a/{number}/b/{}", uuid_of(uuid));
                let card = is_secret(&number.to_string());
                prop_assume!(!card);
                prop_assert_eq!(routes.get("s", &path, false), Route::Folded("/a/{id}/b/{uuid}"));
            }
        }

        /// However many paths there are, the names are no more than the bound and one.
        #[test]
        fn names_are_bounded(paths in proptest::collection::vec("(/[a-z]{1,3}){1,4}", 1..100)) {
            let mut routes = Routes::new(5);
            let names: FxHashSet<String> = paths
                .iter()
                .filter_map(|p| routes.get("s", p, false).name().map(str::to_owned))
                .collect();
            prop_assert!(names.len() <= 6);
        }
    }

    fn uuid_of(n: u128) -> String {
        let hex = format!("{n:032x}");
        [
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        ]
        .join("-")
    }
}
