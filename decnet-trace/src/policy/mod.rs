//! An exchange becomes a span: named, normalised, redacted. No I/O and no clock.
//!
//! * [`http`]: the attributes, as OpenTelemetry's conventions for HTTP have them.
//! * [`route`]: paths of low cardinality.
//! * [`template`]: routes as services declare them.
//! * [`redact`]: what is masked in URLs, and [`mask`] elsewhere; [`rules`]: what the configuration adds.
//! * [`sql`]: statements without their literals.
//! * [`statement`]: the attributes of database statements.
//! * [`trace_context`]: the caller's `traceparent` and `tracestate`.
//! * [`clock`]: from the kernel's time to the wall clock's.

use std::{borrow::Cow, sync::Arc};

use smol_str::SmolStr;

use crate::{
    correlate::{
        exchange::{Exchange, Role},
        statement::Statement,
        wanted::WantedHeaders,
    },
    span::{Resource, Span, SpanKind, SpanRef, trace_flags},
    telemetry::{Count, Counters},
};

mod client;
pub mod clock;
mod docker;
mod fold;
mod header;
pub mod http;
mod literals;
mod mask;
pub mod redact;
mod redactor;
pub mod route;
pub mod rules;
mod segment;
pub mod sql;
pub mod statement;
mod target;
pub mod template;
pub mod trace_context;

pub use client::ClientAddress;
pub use clock::ClockOffset;
pub use header::{attribute as header_attribute, check as check_header};
pub use redactor::Redactor;
pub use route::Pattern;
use route::{Route, Routes};
pub use rules::Rules;
use template::Template;
use trace_context::{TraceParent, trace_state};

/// What the policy does.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// Whether secrets are masked.
    pub redact: bool,
    /// The names of query parameters whose values are kept all the same.
    pub query_allow: Vec<Box<str>>,
    /// What is masked beside what looks like a secret, even where `redact` is off.
    pub rules: Rules,
    /// How much of a client's address is told.
    pub client_address: ClientAddress,
    /// The headers that are told beside those that have attributes of their own.
    pub headers: Arc<WantedHeaders>,
    /// The most routes that a service has; later ones share one name.
    pub routes_max: usize,
    /// Routes that win over learned ones.
    pub patterns: Vec<Pattern>,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            redact: true,
            query_allow: Vec::new(),
            rules: Rules::default(),
            client_address: ClientAddress::default(),
            headers: Arc::default(),
            routes_max: 500,
            patterns: Vec::new(),
        }
    }
}

impl PolicyConfig {
    /// The name of a host as it may be shown.
    fn shown_host<'a>(&self, host: &'a str) -> Cow<'a, str> {
        match self.redact {
            true => mask::host(host),
            false => Cow::Borrowed(host),
        }
    }
}

/// How surely a span belongs under its parent: the value of `decnet.link`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It is known: a header named the parent, or the process's own state did.
    Exact,
    /// It was concluded.
    Inferred,
    /// There is no parent.
    None,
}

impl Link {
    /// The attribute's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Inferred => "inferred",
            Self::None => "none",
        }
    }
}

/// The span of the same process under which an exchange belongs.
#[derive(Clone, Copy, Debug)]
pub struct Parent<'a> {
    /// The span.
    pub span: &'a SpanRef,
    /// How surely.
    pub link: Link,
}

/// Makes spans of exchanges.
#[derive(Debug)]
pub struct Policy {
    config: PolicyConfig,
    served: Routes,
    called: Routes,
    sql: sql::Cache,
    ids: Ids,
    told: http::Told,
    counters: Arc<Counters>,
}

impl Policy {
    /// A policy with an empty table of routes and ids of its own.
    ///
    /// # Errors
    ///
    /// When the kernel gives no random bytes to begin with.
    pub fn new(config: PolicyConfig, counters: Arc<Counters>) -> Result<Self, getrandom::Error> {
        let mut seeds = [0; 16];
        getrandom::fill(&mut seeds)?;
        let mut served = Routes::new(config.routes_max);
        served.configure(config.routes_max, config.patterns.clone());
        Ok(Self {
            served,
            called: Routes::new(config.routes_max),
            sql: sql::Cache::default(),
            ids: Ids::new(u128::from_ne_bytes(seeds)),
            told: http::Told::default(),
            config,
            counters,
        })
    }

    /// Goes by another configuration from now on. What was learned stays.
    pub fn reconfigure(&mut self, config: PolicyConfig) {
        self.served
            .configure(config.routes_max, config.patterns.clone());
        self.called.configure(config.routes_max, Vec::new());
        self.told.reconfigured();
        self.config = config;
    }

    /// The headers that are told.
    pub fn headers(&self) -> Arc<WantedHeaders> {
        Arc::clone(&self.config.headers)
    }

    /// Takes the templates of the routes that a service answers; they come before what paths look
    /// like. See [`Routes::learn`].
    pub fn learn(&mut self, service: &str, templates: impl IntoIterator<Item = Template>) {
        self.served.learn(service, templates);
    }

    /// The span of an exchange. `clock` is the offset at the time of the exchange; `parent` is the span
    /// that caused it, where that is known.
    pub fn span(
        &mut self,
        exchange: &Exchange,
        resource: &Arc<Resource>,
        clock: ClockOffset,
        parent: Option<Parent<'_>>,
    ) -> Span {
        let identity = self.identify(exchange, parent);
        self.build(exchange, resource, clock, identity)
    }

    /// What metrics and sampling go by. Nothing is allocated for a route that is known.
    pub fn observe<'a>(
        &'a mut self,
        exchange: &'a Exchange,
        resource: &Resource,
    ) -> http::Observed<'a> {
        let Self {
            config,
            served,
            called,
            told,
            ..
        } = self;
        let facts = http::Facts::new(exchange, config);
        let routes = match exchange.role {
            Role::Server => served,
            Role::Client => called,
        };
        let route = route(routes, exchange, &facts, resource);
        facts.observed(route.name(), told)
    }

    /// Makes the span of an exchange that has its place in a trace already.
    pub fn build(
        &mut self,
        exchange: &Exchange,
        resource: &Arc<Resource>,
        clock: ClockOffset,
        identity: Identity,
    ) -> Span {
        let facts = http::Facts::new(exchange, &self.config);
        let (routes, kind) = match exchange.role {
            Role::Server => (&mut self.served, SpanKind::Server),
            Role::Client => (&mut self.called, SpanKind::Client),
        };
        let route = route(routes, exchange, &facts, resource);
        if route == Route::Overflow {
            self.counters.add(Count::RouteOverflow, 1);
        }
        let start = clock.to_unix(exchange.start);
        Span {
            trace_id: identity.trace_id,
            span_id: identity.span_id,
            parent_id: identity.parent_id,
            parent_is_remote: identity.parent_is_remote,
            trace_state: identity.trace_state,
            trace_flags: identity.trace_flags | trace_flags::SAMPLED,
            name: match route.name() {
                Some(route) => self.told.name(facts.name(), route),
                None => SmolStr::new_static(facts.name()),
            },
            kind,
            start,
            end: clock.to_unix(exchange.end).max(start),
            attributes: facts.attributes(route, identity.link, &mut self.told),
            status: facts.status(),
            resource: Arc::clone(resource),
        }
    }

    /// Which trace an exchange belongs to: the parent's; or the one that its request names; or its own.
    pub fn identify(&mut self, exchange: &Exchange, parent: Option<Parent<'_>>) -> Identity {
        if parent.is_some() {
            return self.place(parent);
        }
        let named = exchange.traceparent.as_deref().map(TraceParent::parse);
        if named == Some(None) {
            self.counters.add(Count::TraceparentInvalid, 1);
        }
        match named.flatten() {
            Some(named) => Identity {
                trace_id: named.trace_id,
                span_id: self.ids.span_id(),
                parent_id: named.parent_id,
                // What a client sends names a span of its own process, or one that it passes on.
                parent_is_remote: exchange.role == Role::Server,
                parent_sampled: Some(named.sampled),
                trace_state: exchange
                    .tracestate
                    .as_deref()
                    .and_then(trace_state)
                    .map_or_else(Box::default, Box::from),
                trace_flags: u8::from(named.random) * trace_flags::RANDOM,
                link: Link::Exact,
            },
            None => self.place(None),
        }
    }

    /// Whether a request names its parent, by a `traceparent` that can be read.
    pub fn names_parent(&self, exchange: &Exchange) -> bool {
        let named = exchange.traceparent.as_deref();
        named.is_some_and(|named| TraceParent::parse(named).is_some())
    }

    /// A place under a call that another process made, of a request that [names](Self::names_parent) no
    /// parent.
    pub fn join(&mut self, exchange: &Exchange, call: &SpanRef) -> Identity {
        if exchange.traceparent.is_some() {
            self.counters.add(Count::TraceparentInvalid, 1);
        }
        Identity {
            parent_is_remote: true,
            ..self.place(Some(Parent {
                span: call,
                link: Link::Exact,
            }))
        }
    }

    /// A place under a span of the same process, or at the root of a trace of its own.
    pub fn place(&mut self, parent: Option<Parent<'_>>) -> Identity {
        let span_id = self.ids.span_id();
        match parent {
            Some(Parent { span, link }) => Identity {
                trace_id: span.trace_id,
                span_id,
                parent_id: span.span_id,
                parent_is_remote: false,
                parent_sampled: None,
                trace_state: span.trace_state.clone(),
                trace_flags: span.trace_flags,
                link,
            },
            None => Identity {
                trace_id: self.ids.trace_id(),
                span_id,
                parent_id: [0; 8],
                parent_is_remote: false,
                parent_sampled: None,
                trace_state: Box::default(),
                trace_flags: trace_flags::RANDOM,
                link: Link::None,
            },
        }
    }

    /// What metrics go by, of a statement. Nothing is allocated for a text that is known, but for errors.
    pub fn observe_statement<R>(
        &mut self,
        statement: &Statement,
        with: impl FnOnce(&statement::Observed<'_>) -> R,
    ) -> R {
        let sql = statement.text.as_ref().map(|text| self.sql.get(text));
        let facts = statement::Facts::new(statement, sql, &self.config.rules);
        with(&facts.observed())
    }

    /// Makes the span of a statement that has its [place](Self::place) in a trace already.
    pub fn statement(
        &mut self,
        statement: &Statement,
        resource: &Arc<Resource>,
        clock: ClockOffset,
        identity: Identity,
    ) -> Span {
        let sql = statement.text.as_ref().map(|text| self.sql.get(text));
        let facts = statement::Facts::new(statement, sql, &self.config.rules);
        let start = clock.to_unix(statement.start);
        Span {
            trace_id: identity.trace_id,
            span_id: identity.span_id,
            parent_id: identity.parent_id,
            parent_is_remote: identity.parent_is_remote,
            trace_state: identity.trace_state,
            trace_flags: identity.trace_flags | trace_flags::SAMPLED,
            name: facts.name(),
            kind: SpanKind::Client,
            start,
            end: clock.to_unix(statement.end).max(start),
            attributes: facts.attributes(identity.link),
            status: facts.status(),
            resource: Arc::clone(resource),
        }
    }
}

/// The route of an exchange.
fn route<'a>(
    routes: &'a mut Routes,
    exchange: &Exchange,
    facts: &http::Facts<'_>,
    resource: &Resource,
) -> Route<'a> {
    let missing = exchange.status == Some(404);
    let of_docker = exchange.unix_path.as_deref().is_some_and(docker::is_docker);
    if of_docker && let Some(route) = docker::route(facts.path()) {
        return routes.find_known(&resource.service_name, &route, missing);
    }
    match facts.path() {
        "" => Route::Unknown,
        path => routes.find(
            &resource.service_name,
            &exchange.method,
            path,
            &facts.foldable(path),
            missing,
        ),
    }
}

/// Where a span stands in its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The trace's id.
    pub trace_id: [u8; 16],
    /// The span's own id.
    pub span_id: [u8; 8],
    /// The parent's id; all zero for a root.
    pub parent_id: [u8; 8],
    /// Whether the parent is in another process.
    pub parent_is_remote: bool,
    /// Whether the parent is sampled, where a header named it.
    pub parent_sampled: Option<bool>,
    /// The W3C trace state.
    pub trace_state: Box<str>,
    /// W3C trace flags but for that of sampling, which is decided later.
    pub trace_flags: u8,
    /// How surely the parent is the parent.
    pub link: Link,
}

impl Identity {
    /// What is needed to put others under it.
    pub fn reference(&self) -> SpanRef {
        SpanRef {
            trace_id: self.trace_id,
            span_id: self.span_id,
            trace_state: self.trace_state.clone(),
            trace_flags: self.trace_flags,
        }
    }
}

/// Random ids. Two generators, seeded apart: ids of two agents meet only where both halves do.
#[derive(Debug)]
struct Ids {
    high: fastrand::Rng,
    low: fastrand::Rng,
}

impl Ids {
    fn new(seed: u128) -> Self {
        Self {
            high: fastrand::Rng::with_seed((seed >> 64) as u64),
            low: fastrand::Rng::with_seed(seed as u64),
        }
    }

    fn trace_id(&mut self) -> [u8; 16] {
        loop {
            let id = u128::from(self.high.u64(..)) << 64 | u128::from(self.low.u64(..));
            if id != 0 {
                return id.to_be_bytes();
            }
        }
    }

    fn span_id(&mut self) -> [u8; 8] {
        (self.high.u64(..) ^ self.low.u64(..)).max(1).to_be_bytes()
    }
}

#[cfg(test)]
pub(crate) mod tests;
