//! For whom a thread runs that has entered no context of its own: for who put the work that it does into
//! a queue, or for the request that it reads and answers while it does nothing else.

use rustc_hash::FxHashMap;

use super::Identity;

/// The most things in queues that are remembered of a process; beyond it all are forgotten, and whoever
/// takes one out runs for nobody that is known.
const QUEUED_MAX: usize = 1 << 15;

/// The most threads that are remembered of a process.
const THREADS_MAX: usize = 1 << 14;

/// The most callers of a queue that are remembered of a process.
const CALLERS_MAX: usize = 1 << 10;

/// The most things taken by functions under judgement that are remembered of a process.
const UNJUDGED_MAX: usize = 1 << 12;

/// How often it is asked what a function is.
const ASKS_MAX: u8 = 64;

/// The most requests without an answer that are remembered of a process.
const UNANSWERED_MAX: usize = 1 << 12;

/// After how long a request is taken for one that its thread will never answer, in nanoseconds.
const UNANSWERED_FOR: u64 = 60_000_000_000;

/// The threads of a process.
#[derive(Debug, Default)]
pub(super) struct Threads {
    /// For whom each runs.
    bases: FxHashMap<u32, Identity>,
    /// Who put each object that is in a queue there.
    queued: FxHashMap<u64, Identity>,
    /// Whether a function that takes objects out of a queue is a loop that runs each before it takes the
    /// next.
    callers: FxHashMap<u64, Caller>,
    /// What was taken by functions of which it is not known yet what they are.
    unjudged: Vec<Unjudged>,
    /// Requests that were read by a thread that waited for them, by their sockets, and are not answered:
    /// by which thread, and when.
    unanswered: FxHashMap<u64, (u32, u64)>,
    forgotten: u64,
}

/// What is known of a function that takes objects out of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    /// It is being found out, after so many times that it could not be.
    Asked(u8),
    /// It could not be found out so many times. It will be asked again.
    Unasked(u8),
    /// It is such a loop, or none.
    Judged { is_loop: bool },
}

/// An object that was taken out of a queue by a function that may be a loop, or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unjudged {
    caller: u64,
    tid: u32,
    /// For whom the thread runs meanwhile: nobody that is known.
    pub(super) meanwhile: Identity,
    /// Who put the object in.
    pub(super) who: Identity,
}

/// What became of a thread that took an object.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Took {
    /// The function that it runs is unknown, and should be looked at.
    pub(super) is_new: bool,
    /// Who put the object in, where it remains to be seen whether the thread runs for them.
    pub(super) who: Option<Identity>,
}

impl Threads {
    /// For whom a thread runs, if that is known.
    pub(super) fn base(&self, tid: u32) -> Option<Identity> {
        self.bases.get(&tid).copied()
    }

    /// An object was put into a queue. Only one that is in none can be put there: whatever is known
    /// of another at its address is over.
    pub(super) fn put(&mut self, object: u64, who: Option<Identity>) {
        let Some(who) = who else {
            self.queued.remove(&object);
            return;
        };
        if self.queued.len() >= QUEUED_MAX {
            self.forgotten += self.queued.len() as u64;
            self.queued.clear();
        }
        self.queued.insert(object, who);
    }

    /// A thread took an object out of a queue, or 0 if there was none, in a function with this code
    /// object.
    pub(super) fn took(&mut self, tid: u32, object: u64, caller: u64) -> Took {
        let item = self.queued.remove(&object);
        let known = self.callers.get(&caller).copied();
        let is_unjudged = match known {
            // Something within the work that the thread does.
            Some(Caller::Judged { is_loop: false }) => false,
            Some(Caller::Judged { is_loop: true }) => {
                match item {
                    Some(who) => self.set_base(tid, who),
                    None => _ = self.bases.remove(&tid),
                }
                false
            }
            // It may have begun something else.
            Some(Caller::Asked(_) | Caller::Unasked(_)) | None => {
                self.bases.remove(&tid);
                true
            }
        };
        let asked = match known {
            None if caller != 0 && self.callers.len() < CALLERS_MAX => Some(0),
            Some(Caller::Unasked(times)) if times < ASKS_MAX => Some(times),
            _ => None,
        };
        let is_new = asked.is_some();
        if let Some(times) = asked {
            self.callers.insert(caller, Caller::Asked(times));
        }
        let will_be_judged = is_unjudged && self.callers.contains_key(&caller);
        Took {
            is_new,
            who: item.filter(|_| will_be_judged && self.unjudged.len() < UNJUDGED_MAX),
        }
    }

    /// A thread runs for nobody that is known, until it is found out whether this function is a loop: then
    /// for `who`.
    pub(super) fn await_verdict(
        &mut self,
        tid: u32,
        caller: u64,
        meanwhile: Identity,
        who: Identity,
    ) {
        self.set_base(tid, meanwhile);
        self.unjudged.push(Unjudged {
            caller,
            tid,
            meanwhile,
            who,
        });
    }

    /// It was found out whether a function is a loop that runs each object before it takes the next. What
    /// it took meanwhile.
    pub(super) fn set_loop(&mut self, caller: u64, is_loop: bool) -> Vec<Unjudged> {
        if let Some(verdict) = self.callers.get_mut(&caller) {
            *verdict = Caller::Judged { is_loop };
        }
        let judged: Vec<_> = self
            .unjudged
            .extract_if(.., |unjudged| unjudged.caller == caller)
            .collect();
        if !is_loop {
            for Unjudged { tid, meanwhile, .. } in &judged {
                if self.base(*tid) == Some(*meanwhile) {
                    self.bases.remove(tid);
                }
            }
        }
        judged
    }

    /// What a function is could not be found out, or not be asked: it is asked again when it takes something
    /// else, some times.
    pub(super) fn not_asked(&mut self, caller: u64) {
        if let Some(known) = self.callers.get_mut(&caller)
            && let Caller::Asked(times) = *known
        {
            *known = Caller::Unasked(times.saturating_add(1));
        }
    }

    /// A thread read a request, and would have waited for it. Whether it serves nothing beside it: it
    /// has answered, or lost, all that it read before on other connections.
    pub(super) fn begins_request(&mut self, tid: u32, sock: u64, now: u64) -> bool {
        self.unanswered.retain(|_, (reader, since)| {
            *reader != tid || now.saturating_sub(*since) < UNANSWERED_FOR
        });
        let alone = self
            .unanswered
            .iter()
            .all(|(other, (reader, _))| *reader != tid || *other == sock);
        if self.unanswered.len() >= UNANSWERED_MAX {
            self.bases.remove(&tid);
            return false;
        }
        self.unanswered.insert(sock, (tid, now));
        if !alone {
            self.bases.remove(&tid);
        }
        alone
    }

    /// A request was answered, or its connection is gone.
    pub(super) fn answered(&mut self, sock: u64) {
        if !self.unanswered.is_empty() {
            self.unanswered.remove(&sock);
        }
    }

    /// From now on a thread runs for this.
    pub(super) fn set_base(&mut self, tid: u32, who: Identity) {
        if self.bases.len() >= THREADS_MAX && !self.bases.contains_key(&tid) {
            self.forgotten += self.bases.len() as u64;
            self.bases.clear();
        }
        self.bases.insert(tid, who);
    }

    /// A thread has ended; its number may be another's next.
    pub(super) fn ended(&mut self, tid: u32) {
        self.bases.remove(&tid);
    }

    /// What was thought of identities is void; what is known of code is not.
    pub(super) fn restart(self) -> Self {
        Self {
            callers: self.callers,
            forgotten: self.forgotten,
            ..Self::default()
        }
    }

    /// Identities forgotten for want of room.
    pub(super) const fn forgotten(&self) -> u64 {
        self.forgotten
    }
}
