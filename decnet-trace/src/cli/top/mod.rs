//! `decnet-trace top`: shows, second by second, which functions are on the CPU.

mod figures;
mod screen;
mod view;

use std::{
    io::{self, IsTerminal as _},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};

use self::view::{Reaction, View};
use super::{
    report,
    sampling::{Sampling, SamplingArgs},
    wait::Ended,
};
use crate::error::{Error, Exit, Result};

/// How often the figures change.
const INTERVAL: Duration = Duration::from_secs(1);

/// How soon a key is answered.
const TICK: Duration = Duration::from_millis(50);

/// Show, second by second, which functions are on the CPU.
///
/// The processes are not stopped for it. ? shows the keys, q ends it.
#[derive(Args, Debug)]
#[command(
    override_usage = "decnet-trace top [OPTIONS] <--pid <PID>|-- <COMMAND>...>",
    after_help = "Example: sudo decnet-trace top --pid 1234\n\n\
        A command that was started writes nowhere, and ends with this. Exit codes: 0 done, 1 failed at \
        work, 2 usage, 3 this kernel or these privileges can't, 4 no such process, or none that can be \
        sampled."
)]
pub(super) struct TopArgs {
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(super) fn run(args: TopArgs) -> Result<Exit> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Error::usage(
            "top needs a terminal; `decnet-trace record` writes a file",
        ));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let hangup = Arc::new(AtomicBool::new(false));
    for (signal, flag) in [
        (libc::SIGINT, &stop),
        (libc::SIGTERM, &stop),
        (libc::SIGHUP, &stop),
        (libc::SIGHUP, &hangup),
    ] {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .map_err(|error| Error::failed(format!("cannot watch for signals: {error}")))?;
    }
    end_without_terminal(hangup)?;
    let mut sampling = args.sampling.start_by_interval(INTERVAL)?;
    let failed = |error| Error::failed(format!("cannot use the terminal: {error}"));
    // Restores the terminal when something panics, too.
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let mut view = View::new(sampling.title(), args.sampling.rate);
    let ended = watch(&mut terminal, &mut sampling, &mut view, &stop);
    ratatui::try_restore().map_err(failed)?;
    let ended = ended.map_err(failed)?;
    let gaps = sampling.pipeline.live().gaps();
    let (_, note) = sampling.finish(ended)?;
    eprint!("{}", report::lines(&gaps));
    if ended == Ended::Work {
        eprintln!(
            "{}",
            note.as_deref().unwrap_or("what was sampled has ended")
        );
    }
    Ok(Exit::Done)
}

/// Ends the process a moment after a hangup, unless it has ended by itself: crossterm reads on and on from
/// a terminal that is gone, and never comes back. The hooks go with the process.
fn end_without_terminal(hangup: Arc<AtomicBool>) -> Result<()> {
    thread::Builder::new()
        .name("hangup".into())
        .spawn(move || {
            while !hangup.load(Ordering::Relaxed) {
                thread::sleep(INTERVAL);
            }
            thread::sleep(INTERVAL);
            process::exit(Exit::Done as i32);
        })
        .map(drop)
        .map_err(|error| Error::failed(format!("cannot start a thread: {error}")))
}

/// Shows what comes until told to end, or there is nothing more.
fn watch(
    terminal: &mut DefaultTerminal,
    sampling: &mut Sampling,
    view: &mut View,
    stop: &AtomicBool,
) -> io::Result<Ended> {
    terminal.draw(|frame| screen::draw(frame, view))?;
    while !stop.load(Ordering::Relaxed) {
        let mut changed = false;
        if event::poll(TICK)? {
            changed = true;
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
                && view.key(key) == Reaction::End
            {
                return Ok(Ended::Terminated);
            }
        }
        while let Some(profile) = sampling.pipeline.next_profile(Duration::ZERO) {
            view.add(&profile, sampling.pipeline.live().tally());
            changed = true;
        }
        if changed {
            terminal.draw(|frame| screen::draw(frame, view))?;
        }
        if sampling.has_ended() {
            return Ok(Ended::Work);
        }
    }
    Ok(Ended::Terminated)
}
