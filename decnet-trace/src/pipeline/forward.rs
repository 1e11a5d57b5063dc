//! From finished exchanges to spans, and on to the sinks.

use std::sync::Arc;

use super::{calls::Calls, handing::Handing, records::Decoder, worker::Worker};
use crate::{
    correlate::{exchange::Role, outbound::Outbound},
    policy::{Link, Parent},
    span::SpanRef,
    telemetry::Count,
};

impl Worker {
    /// Turns finished exchanges into spans and hands them to the sinks.
    pub(super) fn forward(&mut self, now: u64, all: bool) {
        let mut exchanges = std::mem::take(&mut self.decoder.exchanges);
        let waited = self.processes.ready(now, all);
        let asked = self.decoder.correlator.asked();
        asked.for_each(|asked| self.joins.asked(asked));
        let (hidden, any_hidden) = self.decoder.correlator.hidden();
        hidden.iter().for_each(|hidden| self.calls.hidden(hidden));
        any_hidden
            .into_iter()
            .for_each(|until| self.calls.any_hidden(until));
        for exchange in exchanges.drain(..).chain(waited) {
            let tgid = exchange.tgid;
            let resource = match self.processes.resource(tgid) {
                Some(resource) => Arc::clone(resource),
                None if all => self.processes.nameless(tgid),
                None => {
                    self.processes.wait(now, exchange);
                    continue;
                }
            };
            match exchange.role {
                Role::Server => self.served(now, exchange, resource),
                Role::Client => {
                    self.requests.made += 1;
                    self.joins.over(&exchange);
                    if self.calls.made(Outbound::Exchange(Box::new(exchange))) {
                        self.watch_lineage(tgid);
                    }
                }
            }
        }
        self.decoder.exchanges = exchanges;
        let mut executed = std::mem::take(&mut self.decoder.executed);
        for statement in executed.drain(..) {
            self.requests.statements += 1;
            let tgid = statement.tgid;
            if self.calls.made(Outbound::Statement(Box::new(statement))) {
                self.watch_lineage(tgid);
            }
        }
        self.decoder.executed = executed;
        self.link_and_join(now, all);
        self.sampling.tick(now);
        if all {
            self.sampling.finish();
        }
        if !self.spans.is_empty() {
            self.counters.add(Count::Spans, self.spans.len() as u64);
            self.exporters.send(std::mem::take(&mut self.spans));
        }
    }

    /// Those who have a say in what becomes of a request or a call.
    pub(super) fn handing(&mut self, now: u64) -> Handing<'_> {
        Handing {
            policy: &mut self.policy,
            sampling: &mut self.sampling,
            measure: self.measure.as_ref(),
            spans: &mut self.spans,
            clock: self.clock,
            now,
        }
    }

    /// Puts calls under the requests that caused them, as far as that is known by now.
    pub(super) fn link(&mut self, now: u64, all: bool) {
        self.linking(now, |calls, decoder, each| {
            let correlator = (!all).then_some(&decoder.correlator);
            calls.decide(&decoder.identities, correlator, now, each);
        });
    }

    /// Puts calls under requests that have just got their places.
    pub(super) fn release(&mut self, now: u64) {
        self.linking(now, |calls, _, each| calls.release(each));
    }

    /// Gives each call its place that is handed out.
    fn linking(
        &mut self,
        now: u64,
        hand_out: impl FnOnce(&mut Calls, &Decoder, &mut dyn FnMut(Outbound, Option<&SpanRef>)),
    ) {
        let Self {
            calls,
            decoder,
            policy,
            sampling,
            measure,
            processes,
            spans,
            clock,
            joins,
            ..
        } = self;
        let mut handing = Handing {
            policy,
            sampling,
            measure: measure.as_ref(),
            spans,
            clock: *clock,
            now,
        };
        hand_out(calls, decoder, &mut |outbound, parent| {
            let resource = match processes.resource(outbound.tgid()) {
                Some(resource) => Arc::clone(resource),
                None => processes.nameless(outbound.tgid()),
            };
            let parent = parent.map(|span| Parent {
                span,
                link: Link::Exact,
            });
            let identity = match &outbound {
                Outbound::Exchange(exchange) => {
                    let identity = handing.policy.identify(exchange, parent);
                    joins.placed(exchange, || identity.reference(), now);
                    identity
                }
                Outbound::Statement(_) => handing.policy.place(parent),
            };
            handing.made(outbound, resource, identity);
        });
    }
}
