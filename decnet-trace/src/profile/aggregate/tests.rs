#![expect(clippy::unwrap_used, reason = "a test may panic")]
use std::time::Duration;

use decnet_trace_common::event::{ABI_VERSION, Kind, PyFrame};

use super::*;
use crate::{
    decode::{Event, decode},
    profile::{Meta, Profile, collect::collect},
    symbolize::{self, Limits, PythonFrames, PythonLocation, Reason},
};

/// A sample as it comes out of the ring.
#[derive(Clone, Default)]
struct Raw {
    ts: u64,
    tgid: u32,
    tid: u32,
    flags: u16,
    kernel: Vec<u64>,
    user: Vec<u64>,
    python: Vec<(u64, u64)>,
}

impl Raw {
    fn bytes(&self) -> Vec<u8> {
        let counts = [self.kernel.len(), self.user.len(), self.python.len()];
        let words = counts[0] + counts[1] + 2 * counts[2];
        let len = u16::try_from(size_of::<Sample>() + 8 * words).unwrap();
        let mut bytes = self.ts.to_ne_bytes().to_vec();
        for word in [self.tgid, self.tid, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(len.to_ne_bytes());
        bytes.extend([Kind::Sample as u8, ABI_VERSION]);
        bytes.extend([0; 16]);
        for count in counts {
            bytes.extend(u16::try_from(count).unwrap().to_ne_bytes());
        }
        bytes.extend(self.flags.to_ne_bytes());
        // Code objects are aligned to words.
        let python = self
            .python
            .iter()
            .flat_map(|&(code, instr)| [code * 8, instr]);
        for word in self.kernel.iter().chain(&self.user).copied().chain(python) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }
}

/// Names each code object by its number and each instruction as a line.
struct Numbers;

impl PythonFrames for Numbers {
    fn resolve(&mut self, tgid: u32, frames: &[PyFrame], found: &mut Vec<Option<PythonLocation>>) {
        found.extend(frames.iter().map(|frame| {
            (frame.code != 666 * 8).then(|| PythonLocation {
                name: format!("f{}", frame.code / 8).into(),
                file: format!("{tgid}.py").into(),
                line: u32::try_from(frame.instr).unwrap_or(0),
                first_line: 1,
            })
        }));
    }

    fn process_ended(&mut self, _tgid: u32) {}
}

fn aggregator(options: Options) -> (Aggregator, Client) {
    let (client, _) = symbolize::spawn(Limits::default(), Box::new(Numbers)).unwrap();
    (Aggregator::new(options, client.clone()), client)
}

fn feed(aggregator: &mut Aggregator, raw: &Raw) -> Option<StackId> {
    let bytes = raw.bytes();
    let Event::Sample(sample, frames) = decode(&bytes).unwrap() else {
        panic!("a sample was made");
    };
    aggregator.sample(&sample, &frames)
}

fn profile(aggregator: &mut Aggregator, client: &Client) -> Profile {
    let meta = Meta {
        rate: 100,
        start: 0,
        duration: Duration::from_secs(1),
        command: String::new(),
        lost: 0,
        wall: false,
    };
    collect(aggregator.take(), client, meta, Duration::from_secs(10))
}

fn names(profile: &Profile) -> Vec<(Vec<&str>, u64)> {
    profile
        .samples
        .iter()
        .map(|sample| {
            let names = sample.stack.iter().map(|frame| &*frame.name).collect();
            (names, sample.count)
        })
        .collect()
}

fn python(tgid: u32, python: &[(u64, u64)]) -> Raw {
    Raw {
        tgid,
        tid: tgid,
        ts: 10,
        python: python.to_vec(),
        ..Raw::default()
    }
}

/// Equal stacks are one, with a count and the time between the first and the last; what differs in
/// process, frame or line is another.
#[test]
fn equal_stacks_are_counted_together() {
    let (mut aggregator, client) = aggregator(Options::default());
    let one = python(1, &[(2, 20), (1, 10)]);
    let first = feed(&mut aggregator, &one).unwrap();
    let later = Raw {
        ts: 50,
        tid: 9,
        ..one.clone()
    };
    assert_eq!(feed(&mut aggregator, &later), Some(first));
    let earlier = Raw { ts: 5, ..one };
    assert_eq!(feed(&mut aggregator, &earlier), Some(first));
    for other in [
        python(2, &[(2, 20), (1, 10)]),
        python(1, &[(2, 21), (1, 10)]),
        python(1, &[(2, 20)]),
    ] {
        assert_ne!(feed(&mut aggregator, &other), Some(first));
    }
    let profile = profile(&mut aggregator, &client);
    assert_eq!(
        names(&profile),
        [
            (vec!["f1", "f2"], 3),
            (vec!["f1", "f2"], 1),
            (vec!["f1", "f2"], 1),
            (vec!["f2"], 1),
        ]
    );
    assert_eq!((profile.samples[0].first, profile.samples[0].last), (5, 50));
    assert_eq!(profile.samples[0].stack[1].line, 20);
    assert_eq!(profile.samples[0].thread, None);
}

/// Frames and threads that were not asked for make no difference.
#[test]
fn what_is_not_asked_for_makes_no_difference() {
    let with = Raw {
        kernel: vec![1, 2],
        user: vec![feed as *const () as u64],
        ..python(std::process::id(), &[(1, 1)])
    };
    let without = Raw {
        tid: 5,
        ..python(std::process::id(), &[(1, 1)])
    };
    for (asked, expected) in [(false, 1), (true, 2)] {
        let (mut aggregator, client) = aggregator(Options {
            native: asked,
            kernel: asked,
            threads: asked,
            ..Options::default()
        });
        feed(&mut aggregator, &with);
        feed(&mut aggregator, &without);
        let profile = profile(&mut aggregator, &client);
        assert_eq!(profile.samples.len(), expected);
        assert_eq!(profile.total(), 2);
        let depth = profile.samples[0].stack.len();
        assert_eq!(depth, if asked { 4 } else { 1 });
        assert_eq!(profile.samples[0].thread.is_some(), asked);
    }
}

/// After an exec or an exit, the same addresses are another program's.
#[test]
fn a_new_life_is_another_stack() {
    let (mut aggregator, client) = aggregator(Options::default());
    let raw = python(1, &[(1, 1)]);
    let first = feed(&mut aggregator, &raw);
    let mut event = Proc {
        what: ProcWhat::Fork as u32,
        ..Proc::default()
    };
    event.header.tgid = 1;
    aggregator.process(&event);
    assert_eq!(feed(&mut aggregator, &raw), first);
    for what in [ProcWhat::Exec, ProcWhat::Exit] {
        event.what = what as u32;
        aggregator.process(&event);
        assert_ne!(feed(&mut aggregator, &raw), first);
    }
    assert_eq!(profile(&mut aggregator, &client).samples.len(), 3);
}

/// Past the most distinct stacks, new ones are dropped and counted, and known ones still count.
#[test]
fn too_many_stacks_are_dropped_and_counted() {
    let (mut aggregator, client) = aggregator(Options {
        stacks_max: 3,
        ..Options::default()
    });
    for line in [1, 2, 3, 4, 5, 1] {
        feed(&mut aggregator, &python(1, &[(1, line)]));
    }
    assert_eq!(aggregator.dropped().stacks_full, 2);
    assert_eq!(profile(&mut aggregator, &client).total(), 4);
    // Taken, there is room again.
    assert!(feed(&mut aggregator, &python(1, &[(1, 4)])).is_some());
}

/// A second profile has what was sampled since the first, named anew.
#[test]
fn each_profile_has_its_own_samples() {
    let (mut aggregator, client) = aggregator(Options::default());
    let raw = python(1, &[(1, 1)]);
    for _ in 0..2 {
        feed(&mut aggregator, &raw);
        assert_eq!(names(&profile(&mut aggregator, &client)), [(vec!["f1"], 1)]);
    }
    assert_eq!(names(&profile(&mut aggregator, &client)), []);
    assert_eq!(client.stats().get(Reason::Late), 0);
}

/// Names code by what there is at its address now.
struct Reused(std::sync::Arc<std::sync::atomic::AtomicU32>);

impl PythonFrames for Reused {
    fn resolve(&mut self, _tgid: u32, frames: &[PyFrame], found: &mut Vec<Option<PythonLocation>>) {
        let life = self.0.load(std::sync::atomic::Ordering::SeqCst);
        found.extend(frames.iter().map(|_| {
            (life != 9).then(|| PythonLocation {
                name: format!("life{life}").into(),
                file: "a.py".into(),
                line: 1,
                first_line: 1,
            })
        }));
    }

    fn process_ended(&mut self, _tgid: u32) {}
}

/// When other code takes the addresses of a stack that goes on being sampled, samples count under its name,
/// about a second later; while they are the same, or cannot be told any more, they go on counting as one.
#[test]
fn a_stack_is_named_again_while_it_is_sampled() {
    let life = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(1));
    let resolver = Box::new(Reused(life.clone()));
    let (client, _) = symbolize::spawn(Limits::default(), resolver).unwrap();
    let mut aggregator = Aggregator::new(Options::default(), client.clone());
    // Ten samples a second.
    let lives = [1, 1, 1, 2, 2, 2, 9, 9, 3, 3];
    for tick in 0..100u64 {
        life.store(
            lives[tick as usize / 10],
            std::sync::atomic::Ordering::SeqCst,
        );
        let raw = Raw {
            ts: tick * ASK_AFTER / 10,
            ..python(1, &[(1, 1)])
        };
        feed(&mut aggregator, &raw);
        client.flush(Duration::from_secs(10));
    }
    assert!(aggregator.former.len() <= 2);
    let profile = profile(&mut aggregator, &client);
    assert_eq!(
        names(&profile),
        [
            (vec!["life1"], 30),
            (vec!["life2"], 50),
            (vec!["life3"], 20)
        ]
    );
    assert_eq!(client.take(StackId(u64::MAX)).len(), 0);
}

/// However many stacks are sampled, so many a second are named again, and with a full table none.
#[test]
fn naming_again_is_bounded() {
    for (stacks_max, asked) in [(10_000, ASK_MOST as usize), (1000, 0)] {
        let (mut aggregator, client) = aggregator(Options {
            stacks_max,
            ..Options::default()
        });
        for second in [0, 1] {
            for line in 0..1000 {
                let raw = Raw {
                    ts: 5 + second * ASK_AFTER,
                    ..python(1, &[(1, line)])
                };
                feed(&mut aggregator, &raw);
                client.flush(Duration::from_secs(10));
            }
        }
        let again = aggregator
            .stacks
            .values()
            .filter(|entry| entry.again.is_some());
        assert_eq!(again.count(), asked);
        let profile = profile(&mut aggregator, &client);
        assert_eq!((profile.samples.len(), profile.total()), (1000, 2000));
    }
}

/// Only threads with the GIL count where only they are asked for; a cut stack says that it is cut;
/// an unreadable code object is unknown.
#[test]
fn flags_are_heeded() {
    let (mut aggregator, client) = aggregator(Options {
        gil_only: true,
        ..Options::default()
    });
    assert_eq!(feed(&mut aggregator, &python(1, &[(1, 1)])), None);
    assert_eq!(aggregator.dropped().without_gil, 1);
    let held = Raw {
        flags: sample_flags::GIL,
        ..python(1, &[(2, 1), (0, 1), (666, 1), (0, 1)])
    };
    feed(&mut aggregator, &held);
    let cut = Raw {
        flags: sample_flags::GIL | sample_flags::PYTHON_TRUNCATED,
        ..held
    };
    feed(&mut aggregator, &cut);
    let empty = Raw {
        python: vec![],
        ..cut
    };
    feed(&mut aggregator, &empty);
    assert_eq!(
        names(&profile(&mut aggregator, &client)),
        [
            (vec!["[unknown]", "f2"], 1),
            (vec!["[truncated]", "[unknown]", "f2"], 1),
            (vec!["[native]"], 1),
        ]
    );
}

/// A stack that the symbolizer was too busy for is offered again when it is next seen; if it is
/// not, its samples still count.
#[test]
fn a_refused_stack_is_offered_again() {
    let limits = Limits {
        queue: 0,
        ..Limits::default()
    };
    let (client, _) = symbolize::spawn(limits, Box::new(Numbers)).unwrap();
    let mut aggregator = Aggregator::new(Options::default(), client.clone());
    // A queue without room takes a stack only while the thread waits for one.
    let rare = python(1, &[(1, 1)]);
    while feed(&mut aggregator, &rare).is_some() && client.stats().get(Reason::QueueFull) == 0 {
        aggregator.take();
    }
    let refused = client.stats().get(Reason::QueueFull);
    assert_eq!(refused, 1);
    let profile = profile(&mut aggregator, &client);
    assert_eq!(names(&profile), [(vec!["[unresolved]"], 1)]);

    let common = python(1, &[(2, 1)]);
    let id = feed(&mut aggregator, &common).unwrap();
    let mut count = 1;
    while client.stack(id).is_none() {
        assert_eq!(feed(&mut aggregator, &common), Some(id));
        count += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    let profile = collect(
        aggregator.take(),
        &client,
        profile.meta,
        Duration::from_secs(10),
    );
    assert_eq!(names(&profile), [(vec!["f2"], count)]);
}
