//! What becomes of a request or a call whose place in its trace is known: it is counted, kept or
//! dropped, and its span is built only if it is kept.

use std::sync::Arc;

use super::measure::Measure;
use crate::{
    correlate::{
        exchange::{Exchange, Role},
        outbound::Outbound,
        statement::Statement,
    },
    policy::{ClockOffset, Identity, Policy},
    sampling::{Candidate, Kept, Reason, Sampling, Verdict, probability::with_threshold},
    span::{Resource, Span, Value},
};

/// What a span can be made of, while its trace is not decided.
#[derive(Debug)]
pub(super) struct Unbuilt {
    what: Outbound,
    resource: Arc<Resource>,
    identity: Identity,
}

/// A request or a call.
#[derive(Clone, Copy)]
pub(super) enum What<'a> {
    Exchange(&'a Exchange),
    Statement(&'a Statement),
}

impl<'a> From<&'a Outbound> for What<'a> {
    fn from(outbound: &'a Outbound) -> Self {
        match outbound {
            Outbound::Exchange(exchange) => Self::Exchange(exchange),
            Outbound::Statement(statement) => Self::Statement(statement),
        }
    }
}

/// The parts of the pipeline that have a say.
pub(super) struct Handing<'a> {
    pub(super) policy: &'a mut Policy,
    pub(super) sampling: &'a mut Sampling<Unbuilt>,
    pub(super) measure: Option<&'a Measure>,
    pub(super) spans: &'a mut Vec<Span>,
    pub(super) clock: ClockOffset,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) now: u64,
}

impl Handing<'_> {
    /// A request that was served.
    pub(super) fn served(
        &mut self,
        exchange: Exchange,
        resource: Arc<Resource>,
        identity: Identity,
    ) {
        match self.decide(What::Exchange(&exchange), &resource, &identity) {
            Verdict::Keep(kept) => {
                self.keep(What::Exchange(&exchange), &resource, identity, kept);
            }
            // Boxed only here: as a rule it is not kept back.
            Verdict::Hold => self.hold(Outbound::Exchange(Box::new(exchange)), resource, identity),
            Verdict::Drop => {}
        }
    }

    /// A call that was made.
    pub(super) fn made(&mut self, what: Outbound, resource: Arc<Resource>, identity: Identity) {
        match self.decide((&what).into(), &resource, &identity) {
            Verdict::Keep(kept) => self.keep((&what).into(), &resource, identity, kept),
            Verdict::Hold => self.hold(what, resource, identity),
            Verdict::Drop => {}
        }
    }

    /// Decides, and counts whatever the decision is.
    fn decide(&mut self, what: What<'_>, resource: &Arc<Resource>, identity: &Identity) -> Verdict {
        let mut candidate = Candidate {
            trace_id: &identity.trace_id,
            trace_state: &identity.trace_state,
            parent_sampled: identity.parent_sampled,
            service: &resource.service_name,
            route: "",
            error: false,
            duration: 0,
            served: false,
        };
        match what {
            What::Exchange(exchange) => {
                let seen = self.policy.observe(exchange, resource);
                candidate.route = seen.route.unwrap_or(seen.method);
                candidate.error = seen.error.is_some();
                candidate.duration = seen.duration;
                candidate.served = exchange.role == Role::Server;
                let verdict = self.sampling.decide(&candidate, self.now);
                if let Some(measure) = self.measure {
                    let end = self.clock.to_unix(exchange.end);
                    let span = matches!(verdict, Verdict::Keep(_))
                        .then_some((identity.trace_id, identity.span_id));
                    measure.metrics.lock().exchange(resource, &seen, end, span);
                }
                verdict
            }
            What::Statement(statement) => {
                candidate.route = "sqlite";
                candidate.error = statement.error.is_some();
                candidate.duration = statement.end.saturating_sub(statement.start);
                let verdict = self.sampling.decide(&candidate, self.now);
                if let Some(measure) = self.measure {
                    let end = self.clock.to_unix(statement.end);
                    let span = matches!(verdict, Verdict::Keep(_))
                        .then_some((identity.trace_id, identity.span_id));
                    self.policy.observe_statement(statement, |seen| {
                        measure.metrics.lock().statement(resource, seen, end, span);
                    });
                }
                verdict
            }
        }
    }

    /// Builds the span, after those of its trace that were kept back.
    fn keep(&mut self, what: What<'_>, resource: &Arc<Resource>, identity: Identity, kept: Kept) {
        for held in self.sampling.release(&identity.trace_id) {
            let span = self.build((&held.what).into(), &held.resource, held.identity, kept);
            self.spans.push(span);
        }
        let span = self.build(what, resource, identity, kept);
        self.spans.push(span);
    }

    fn hold(&mut self, what: Outbound, resource: Arc<Resource>, identity: Identity) {
        let trace_id = identity.trace_id;
        let unbuilt = Unbuilt {
            what,
            resource,
            identity,
        };
        self.sampling.hold(&trace_id, unbuilt);
    }

    fn build(
        &mut self,
        what: What<'_>,
        resource: &Arc<Resource>,
        identity: Identity,
        kept: Kept,
    ) -> Span {
        let mut span = match what {
            What::Exchange(exchange) => self.policy.build(exchange, resource, self.clock, identity),
            What::Statement(statement) => self
                .policy
                .statement(statement, resource, self.clock, identity),
        };
        if self.sampling.is_choosy() {
            let reason = Value::Str(kept.reason.as_str().into());
            span.attributes.push(("decnet.sampling.reason", reason));
            let count = kept.threshold.adjusted_count();
            span.attributes
                .push(("decnet.sampling.adjusted_count", Value::Float(count)));
            // What the caller said of itself stands.
            if kept.reason != Reason::Parent && count > 1.0 {
                span.trace_state = with_threshold(&span.trace_state, kept.threshold);
            }
        }
        span
    }
}
