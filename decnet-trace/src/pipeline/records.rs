//! Where each record from the rings goes.

use std::sync::Arc;

use super::{discovery::DiscoveryThread, live::Live};
use crate::{
    correlate::{Correlator, exchange::Exchange, identity::Identities},
    decode::{Event, decode},
    profile::aggregate::Aggregator,
};

/// The part of the state that each record goes through; apart from the rest so that the rings can be
/// read meanwhile.
pub(super) struct Decoder {
    pub(super) identities: Identities,
    pub(super) correlator: Correlator,
    pub(super) profile: Option<Aggregator>,
    pub(super) exchanges: Vec<Exchange>,
    pub(super) live: Arc<Live>,
    pub(super) undecoded: u64,
}

impl Decoder {
    /// Lets time pass.
    pub(super) fn tick(&mut self, now: u64) {
        self.correlator.tick(now, &mut self.exchanges);
    }

    /// Sends one record where it belongs.
    pub(super) fn record(&mut self, bytes: &[u8], discovery: Option<&DiscoveryThread>) {
        match decode(bytes) {
            Ok(Event::SockOp(mut op, payload)) => {
                // From here on the context's address, which is reused, is a number that is not.
                op.context = self.identities.on_sock_op(&op).to_bits();
                self.correlator
                    .on_sock_op(&op, payload, &mut self.exchanges);
            }
            Ok(Event::SockState(state)) => {
                self.identities.on_sock_state(&state);
                self.correlator.on_sock_state(&state, &mut self.exchanges);
                if let Some(discovery) = discovery {
                    discovery.on_sock_state(&state);
                }
            }
            Ok(Event::Proc(event)) => {
                self.identities.on_proc(&event);
                self.correlator.on_proc(&event, &mut self.exchanges);
                if let Some(profile) = &mut self.profile {
                    profile.process(&event);
                }
                if let Some(discovery) = discovery {
                    discovery.on_proc(&event);
                }
            }
            Ok(Event::Sample(sample, frames)) => {
                self.live.count(&sample);
                if let Some(profile) = &mut self.profile {
                    profile.sample(&sample, &frames);
                }
            }
            Ok(Event::Lineage(step)) => self.identities.on_lineage(&step),
            Err(_) => self.undecoded += 1,
        }
    }
}
