//! `decnet-trace top` on a real terminal: tmux's.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use super::support::{AGENT, Running, alone, can_run, system};

/// How long the screen may take to show something, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal with a shell's script in it. It ends when this is dropped.
struct Terminal(String);

impl Terminal {
    /// Starts the script on a terminal of 250 columns and 40 rows, where there is a tmux.
    fn start(script: &str) -> Option<Self> {
        let terminal = Self(format!("decnet-trace-test-{}", std::process::id()));
        // Not the user's configuration, nor their server.
        let started = terminal
            .tmux(&[
                "-f",
                "/dev/null",
                "new-session",
                "-d",
                "-x",
                "250",
                "-y",
                "40",
                script,
            ])
            .status();
        started
            .is_ok_and(|status| status.success())
            .then_some(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.0]).args(arguments);
        command
    }

    fn press(&self, key: &str) {
        assert!(self.tmux(&["send-keys", key]).status().unwrap().success());
    }

    /// Waits until the screen shows what is wanted.
    fn wait(&self, what: &str, is_wanted: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let output = self.tmux(&["capture-pane", "-p"]).output().unwrap();
            let screen = String::from_utf8(output.stdout).unwrap();
            if is_wanted(&screen) {
                return screen;
            }
            assert!(began.elapsed() < PATIENCE, "{what}:\n{screen}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]).status();
    }
}

/// The first row of the table.
fn first_row(screen: &str) -> &str {
    let mut lines = screen.lines();
    lines.find(|line| line.contains("own %") && line.contains("Total s"));
    lines.next().unwrap_or_default()
}

/// The figures of a busy program, its views and orders, the pause, the help; and after the end, the
/// terminal as it was.
#[test]
fn top_shows_what_runs_and_leaves_the_terminal_as_it_was() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = system() else {
        return;
    };
    let running = Running::start(&python, "mix.py", &["600"]);
    let script = format!(
        "echo before; {AGENT} top --pid {}; echo ended with $?; sleep 60",
        running.pid()
    );
    let Some(terminal) = Terminal::start(&script) else {
        println!("SKIPPED: no tmux at hand");
        return;
    };
    let heavy = |screen: &str| first_row(screen).contains("heavy (");
    let screen = terminal.wait("functions", heavy);
    assert!(!screen.contains("before"), "{screen}");
    // One thread, which computes: it holds the GIL whenever it is on a CPU.
    let state = screen.lines().find(|line| line.starts_with("CPU")).unwrap();
    let numbers: Vec<u32> = state
        .split(['%', ' '])
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(numbers[0] > 0 && numbers[1] > 0, "{state}");
    assert!(numbers[0].abs_diff(numbers[1]) <= 2, "{state}");
    // The line on which the function begins.
    assert!(first_row(&screen).contains("mix.py:7)"), "{screen}");

    terminal.press("2");
    terminal.wait("lines", |screen| {
        screen.contains("mix.py:8)") && screen.contains("mix.py:13)")
    });
    terminal.press("3");
    terminal.wait("threads", |screen| {
        first_row(screen).contains(&format!("thread ({})", running.pid()))
    });
    terminal.press("1");
    terminal.wait("functions", heavy);
    terminal.press("T");
    terminal.wait("totals", |screen| first_row(screen).contains("<module> ("));
    terminal.press("O");
    terminal.wait("own", heavy);
    terminal.press("Space");
    terminal.wait("pause", |screen| screen.contains("PAUSED"));
    terminal.press("Space");
    terminal.wait("no pause", |screen| !screen.contains("PAUSED"));
    terminal.press("?");
    terminal.wait("help", |screen| {
        screen.contains("keys and words") && screen.contains("by function, by line, by thread")
    });
    terminal.press("?");
    terminal.wait("no help", |screen| !screen.contains("keys and words"));

    terminal.press("q");
    let screen = terminal.wait("the end", |screen| screen.contains("ended with 0"));
    assert!(screen.starts_with("before"), "{screen}");
    assert!(!screen.contains("heavy"), "{screen}");
}

/// Of two processes, each has a tab with its own figures alone, beside one for both.
#[test]
fn top_shows_single_processes() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = system() else {
        return;
    };
    let mix = Running::start(&python, "mix.py", &["600"]);
    let deep = Running::start(&python, "deep.py", &[]);
    let script = format!("exec {AGENT} top -p {},{}", mix.pid(), deep.pid());
    let Some(terminal) = Terminal::start(&script) else {
        println!("SKIPPED: no tmux at hand");
        return;
    };
    let shows = |screen: &str, heavy: bool, spin: bool| {
        screen.contains("heavy (") == heavy && screen.contains("spin (") == spin
    };
    let screen = terminal.wait("both", |screen| shows(screen, true, true));
    let tabs = screen.lines().nth(1).unwrap();
    assert!(tabs.starts_with(" all "), "{screen}");
    for running in [&mix, &deep] {
        assert!(tabs.contains(&format!(" {} ", running.pid())), "{screen}");
    }
    let mut pids = [(mix.child.id(), true), (deep.child.id(), false)];
    pids.sort_unstable();
    for (pid, is_mix) in pids {
        terminal.press("Tab");
        terminal.wait(&format!("process {pid}"), |screen| {
            shows(screen, is_mix, !is_mix) && !screen.contains("outside Python")
        });
    }
    terminal.press("Right");
    terminal.wait("both again", |screen| shows(screen, true, true));
    terminal.press("Left");
    terminal.wait("the last", |screen| shows(screen, pids[1].1, !pids[1].1));
    terminal.press("0");
    terminal.wait("all", |screen| shows(screen, true, true));
    terminal.press("?");
    terminal.wait("help", |screen| screen.contains("Tab ← →  all processes"));
}

/// When the terminal goes away, so does what was shown on it: nothing goes on reading from there.
#[test]
fn top_ends_with_its_terminal() {
    if !can_run() {
        return;
    }
    let _alone = alone();
    let Some(python) = system() else {
        return;
    };
    let running = Running::start(&python, "mix.py", &["600"]);
    let Some(terminal) = Terminal::start(&format!("exec {AGENT} top --pid {}", running.pid()))
    else {
        println!("SKIPPED: no tmux at hand");
        return;
    };
    terminal.wait("functions", |screen| first_row(screen).contains("heavy ("));
    let output = terminal.tmux(&["list-panes", "-F", "#{pane_pid}"]).output();
    let pid = String::from_utf8(output.unwrap().stdout).unwrap();
    let top = format!("/proc/{}/exe", pid.trim());
    assert!(std::fs::read_link(&top).unwrap().ends_with("decnet-trace"));
    drop(terminal);
    let began = Instant::now();
    while std::fs::read_link(&top).is_ok_and(|exe| exe.ends_with("decnet-trace")) {
        assert!(began.elapsed() < Duration::from_secs(10), "it goes on");
        std::thread::sleep(Duration::from_millis(100));
    }
}
