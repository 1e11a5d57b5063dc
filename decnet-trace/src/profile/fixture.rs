//! Profiles for tests.

use std::{sync::Arc, time::Duration};

use super::{Frame, FrameKind, Meta, Process, Profile, Sample, Thread};

pub(crate) fn python(name: &str, file: &str, line: u32, first_line: u32) -> Frame {
    Frame {
        kind: FrameKind::Python,
        name: name.into(),
        file: file.into(),
        line,
        first_line,
    }
}

pub(crate) fn native(name: &str, module: &str) -> Frame {
    Frame {
        kind: FrameKind::Native,
        name: name.into(),
        file: module.into(),
        line: 0,
        first_line: 0,
    }
}

pub(crate) fn kernel(name: &str) -> Frame {
    Frame::marker(FrameKind::Kernel, name)
}

/// Samples of one process, each a thread (none where 0), a stack and a count.
pub(crate) fn profile(samples: &[(u32, &[Frame], u64)]) -> Profile {
    let process = Arc::new(Process {
        tgid: 77,
        command: "python app.py".into(),
    });
    let mut first = 1_000;
    Profile {
        meta: Meta {
            rate: 100,
            start: 1_700_000_000_000_000_000,
            duration: Duration::from_secs(10),
            command: "python app.py".into(),
            lost: 3,
            wall: false,
        },
        samples: samples
            .iter()
            .map(|&(tid, stack, count)| {
                first += 1_000;
                Sample {
                    process: process.clone(),
                    thread: (tid != 0).then(|| Thread {
                        tid,
                        name: format!("worker-{tid}").into(),
                    }),
                    stack: stack.iter().cloned().map(Arc::new).collect(),
                    count,
                    first,
                    last: first + 500,
                }
            })
            .collect(),
    }
}

/// A request handler that compresses, parses and recurses, on two threads.
pub(crate) fn busy() -> Profile {
    let main = python("<module>", "/srv/app/main.py", 40, 1);
    let handler = python("handler", "/srv/app/main.py", 12, 10);
    let handler_later = python("handler", "/srv/app/main.py", 13, 10);
    let fib = |line| python("größte_fib", "/srv/app/fib.py", line, 3);
    let deflate = native("deflate", "/usr/lib/libz.so.1");
    let syscall = kernel("do_syscall_64");
    profile(&[
        (1, &[main.clone(), handler.clone()], 5),
        (1, &[main.clone(), handler_later, deflate.clone()], 20),
        (1, &[main.clone(), handler, deflate, syscall], 2),
        (2, &[main.clone(), fib(4), fib(5), fib(5)], 10),
        (2, &[main, fib(4)], 1),
    ])
}
