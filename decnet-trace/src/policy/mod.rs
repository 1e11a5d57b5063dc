//! An exchange becomes a span: named, normalised, redacted. No I/O and no clock.
//!
//! * [`http`]: the attributes, as OpenTelemetry's conventions for HTTP have them.
//! * [`route`]: paths of low cardinality.
//! * [`redact`]: what is masked.
//! * [`trace_context`]: the caller's `traceparent` and `tracestate`.
//! * [`clock`]: from the kernel's time to the wall clock's.

use std::{borrow::Cow, sync::Arc};

use crate::{
    correlate::exchange::{Exchange, Role},
    span::{Resource, Span, SpanKind, SpanRef},
    telemetry::{Count, Counters},
};

pub mod clock;
pub mod http;
pub mod redact;
pub mod route;
mod segment;
mod target;
pub mod trace_context;

pub use clock::ClockOffset;
use route::{Route, Routes};
use trace_context::{TraceParent, trace_state};

/// What the policy does.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// Whether secrets are masked.
    pub redact: bool,
    /// The names of query parameters whose values are kept all the same.
    pub query_allow: Vec<Box<str>>,
    /// The most routes that a service has; later ones share one name.
    pub routes_max: usize,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            redact: true,
            query_allow: Vec::new(),
            routes_max: 500,
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
    ids: Ids,
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
        Ok(Self {
            served: Routes::new(config.routes_max),
            called: Routes::new(config.routes_max),
            ids: Ids::new(u128::from_ne_bytes(seeds)),
            config,
            counters,
        })
    }

    /// Takes the templates of the routes that a service answers; they come before what paths look
    /// like. See [`Routes::learn`].
    pub fn learn<'a>(&mut self, service: &str, templates: impl Iterator<Item = &'a str>) {
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
        self.counters.add(Count::Spans, 1);
        let identity = self.identity(exchange, parent);
        let facts = http::Facts::new(exchange, &self.config);
        let routes = match exchange.role {
            Role::Server => &mut self.served,
            Role::Client => &mut self.called,
        };
        let missing = exchange.status == Some(404);
        let route = match facts.path() {
            "" => Route::Unknown,
            path => routes.find(&resource.service_name, path, missing),
        };
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
            name: match route.name() {
                Some(route) => Cow::Owned(format!("{} {route}", facts.name())),
                None => Cow::Borrowed(facts.name()),
            },
            kind: match exchange.role {
                Role::Server => SpanKind::Server,
                Role::Client => SpanKind::Client,
            },
            start,
            end: clock.to_unix(exchange.end).max(start),
            attributes: facts.attributes(route, identity.link),
            status: facts.status(),
            resource: Arc::clone(resource),
        }
    }

    /// Which trace an exchange belongs to: the parent's; or the one that its request names; or its own.
    fn identity(&mut self, exchange: &Exchange, parent: Option<Parent<'_>>) -> Identity {
        let span_id = self.ids.span_id();
        if let Some(Parent { span, link }) = parent {
            return Identity {
                trace_id: span.trace_id,
                span_id,
                parent_id: span.span_id,
                parent_is_remote: false,
                trace_state: span.trace_state.clone(),
                link,
            };
        }
        let named = exchange.traceparent.as_deref().map(TraceParent::parse);
        if named == Some(None) {
            self.counters.add(Count::TraceparentInvalid, 1);
        }
        match named.flatten() {
            Some(named) => Identity {
                trace_id: named.trace_id,
                span_id,
                parent_id: named.parent_id,
                // What a client sends names a span of its own process, or one that it passes on.
                parent_is_remote: exchange.role == Role::Server,
                trace_state: exchange
                    .tracestate
                    .as_deref()
                    .and_then(trace_state)
                    .map_or_else(Box::default, Box::from),
                link: Link::Exact,
            },
            None => Identity {
                trace_id: self.ids.trace_id(),
                span_id,
                parent_id: [0; 8],
                parent_is_remote: false,
                trace_state: Box::default(),
                link: Link::None,
            },
        }
    }
}

/// Where a span stands in its trace.
struct Identity {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent_id: [u8; 8],
    parent_is_remote: bool,
    trace_state: Box<str>,
    link: Link,
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
