//! How frames, processes and threads read in text: as py-spy writes them, so that scripts made for
//! its output go on working.

use std::{borrow::Cow, fmt::Write as _};

use super::{Frame, FrameKind, Sample};

/// What the text of a stack shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Python frames carry their line.
    pub lines: bool,
    /// Python frames carry the line on which their function begins, so that the lines of one
    /// function fall together.
    pub by_function: bool,
    /// Files are shown in full; otherwise without the part up to `site-packages` or the standard
    /// library's folder.
    pub full_paths: bool,
    /// Each stack begins with its process.
    pub processes: bool,
    /// Each stack begins (after its process) with its thread.
    pub threads: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            lines: true,
            by_function: false,
            full_paths: false,
            processes: false,
            threads: false,
        }
    }
}

impl Style {
    /// The line that a frame is shown with; 0 for none.
    pub fn line(&self, frame: &Frame) -> u32 {
        match (self.lines, self.by_function) {
            (false, _) => 0,
            (true, true) => frame.first_line,
            (true, false) => frame.line,
        }
    }

    /// The path of a Python file as it is shown.
    pub fn path<'a>(&self, file: &'a str) -> &'a str {
        if self.full_paths {
            file
        } else {
            short_path(file)
        }
    }
}

/// Appends a stack's text: frames outermost first, joined by `;`.
pub fn write_stack(sample: &Sample, style: &Style, out: &mut String) {
    let start = out.len();
    if style.processes {
        write_process(sample, out);
    }
    if style.threads && sample.thread.is_some() {
        separate(start, out);
        write_thread(sample, out);
    }
    for frame in &*sample.stack {
        separate(start, out);
        write_frame(frame, style, out);
    }
}

fn separate(start: usize, out: &mut String) {
    if out.len() > start {
        out.push(';');
    }
}

/// Appends a process's label: `process 123:"python app.py"`.
pub fn write_process(sample: &Sample, out: &mut String) {
    let process = &sample.process;
    let _ = write!(out, "process {}:\"", process.tgid);
    write_clean(&process.command, out);
    out.push('"');
}

/// Appends a thread's label: `thread (123): name`.
pub fn write_thread(sample: &Sample, out: &mut String) {
    if let Some(thread) = &sample.thread {
        let _ = write!(out, "thread ({})", thread.tid);
        if !thread.name.is_empty() {
            out.push_str(": ");
            write_clean(&thread.name, out);
        }
    }
}

/// Appends a frame's text: `name (file:line)` for Python, `name` for native code, `name_[k]` for the
/// kernel.
pub fn write_frame(frame: &Frame, style: &Style, out: &mut String) {
    write_clean(&frame.name, out);
    match frame.kind {
        FrameKind::Kernel => out.push_str("_[k]"),
        FrameKind::Native => {}
        FrameKind::Python if frame.file.is_empty() => {}
        FrameKind::Python => {
            out.push_str(" (");
            write_clean(style.path(&frame.file), out);
            let line = style.line(frame);
            if line != 0 {
                let _ = write!(out, ":{line}");
            }
            out.push(')');
        }
    }
}

/// A Python file's path without the part that only says where packages are installed.
pub fn short_path(file: &str) -> &str {
    for folder in ["/site-packages/", "/dist-packages/"] {
        if let Some(at) = file.rfind(folder) {
            return &file[at + folder.len()..];
        }
    }
    // The standard library: /usr/lib/python3.11/asyncio/base_events.py
    if let Some(at) = file.rfind("/lib/python") {
        let rest = &file[at + "/lib/python".len()..];
        if let Some((version, inner)) = rest.split_once('/')
            && !version.is_empty()
            && version
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b't')
        {
            return inner;
        }
    }
    file
}

/// Appends text that cannot break a folded line: no `;`, no line breaks, and no space before a last
/// word that would read as a number of samples.
fn write_clean(text: &str, out: &mut String) {
    let text = match misread_as_count(text) {
        Some(at) => Cow::Owned(format!("{}_{}", &text[..at], &text[at + 1..])),
        None => Cow::Borrowed(text),
    };
    out.extend(text.chars().map(|character| match character {
        ';' => ':',
        character if character.is_control() || character == '\u{2028}' => ' ',
        character => character,
    }));
}

/// Where the space before a last word made of digits stands.
fn misread_as_count(text: &str) -> Option<usize> {
    let at = text.rfind(' ')?;
    text[at + 1..]
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
        .then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixture::{kernel, native, python};

    fn text(frame: &Frame, style: &Style) -> String {
        let mut out = String::new();
        write_frame(frame, style, &mut out);
        out
    }

    /// A Python frame reads as in py-spy's raw format, with the line, the function's line, or none.
    #[test]
    fn python_frames_read_as_py_spys() {
        let frame = python("handler", "/srv/app/main.py", 12, 10);
        let style = Style::default();
        assert_eq!(text(&frame, &style), "handler (/srv/app/main.py:12)");
        let function = Style {
            by_function: true,
            ..style
        };
        assert_eq!(text(&frame, &function), "handler (/srv/app/main.py:10)");
        let no_lines = Style {
            lines: false,
            ..style
        };
        assert_eq!(text(&frame, &no_lines), "handler (/srv/app/main.py)");
    }

    /// Native and kernel frames show their symbol, and the kernel's are marked.
    #[test]
    fn native_and_kernel_frames_show_symbols() {
        let style = Style::default();
        assert_eq!(
            text(&native("deflate", "/lib/libz.so.1"), &style),
            "deflate"
        );
        assert_eq!(text(&kernel("do_syscall_64"), &style), "do_syscall_64_[k]");
    }

    /// A name can neither end a frame, nor a line, nor be read as a count.
    #[test]
    fn names_cannot_break_a_folded_line() {
        let style = Style::default();
        assert_eq!(text(&native("<[u8; 8]>::f\n", ""), &style), "<[u8: 8]>::f ");
        assert_eq!(text(&native("worker 12", ""), &style), "worker_12");
        assert_eq!(text(&native("a ", ""), &style), "a_");
    }

    /// Only the folders that say where packages are installed are cut.
    #[test]
    fn short_paths_drop_where_packages_are_installed() {
        for (full, short) in [
            (
                "/venv/lib/python3.12/site-packages/fastapi/routing.py",
                "fastapi/routing.py",
            ),
            ("/usr/lib/python3/dist-packages/x.py", "x.py"),
            ("/usr/lib/python3.11/asyncio/events.py", "asyncio/events.py"),
            ("/usr/lib/python3.13t/json/encoder.py", "json/encoder.py"),
            ("/srv/lib/pythonic/a.py", "/srv/lib/pythonic/a.py"),
            ("/srv/app/main.py", "/srv/app/main.py"),
            (
                "<frozen importlib._bootstrap>",
                "<frozen importlib._bootstrap>",
            ),
        ] {
            assert_eq!(short_path(full), short);
        }
    }
}
