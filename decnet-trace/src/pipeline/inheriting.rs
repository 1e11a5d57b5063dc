//! Whether a CPython's threads run in a copy of the context of whoever started them.
//!
//! CPython 3.14 can be told so (`-X thread_inherit_context`, `PYTHON_THREAD_INHERIT_CONTEXT`). A pool's thread is then
//! in a copy of one request's context for good, and so is what it does for others: contexts tell nothing there.

use std::{
    fs::File,
    io::{self, Read as _},
};

use crate::python::Version;

/// The most that is read of a process's arguments, and of its environment; an environment may be larger.
const READ_MAX: u64 = 4 << 20;

/// The version that can be told so first.
const FIRST: Version = Version::new(3, 14, 0);

/// The option's name, and that of the variable.
const OPTION: &[u8] = b"thread_inherit_context";
const VARIABLE: &[u8] = b"PYTHON_THREAD_INHERIT_CONTEXT=";

/// Whether a process was told so. Of one that cannot be read nothing is known: it has ended, as a rule.
pub(super) fn hands_on_contexts(pid: u32, version: Version) -> bool {
    if (version.major, version.minor) < (FIRST.major, FIRST.minor) {
        return false;
    }
    let read = |name: &str| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(format!("/proc/{pid}/{name}"))?;
        file.take(READ_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match (read("cmdline"), read("environ")) {
        (Ok(arguments), Ok(environment)) => says_so(&arguments, &environment),
        _ => true,
    }
}

/// Whether arguments or an environment say so, as the kernel shows them: each ends with a zero byte. An option that
/// is given for something else than the interpreter is taken for one of its own.
fn says_so(arguments: &[u8], environment: &[u8]) -> bool {
    let option = arguments
        .split(|byte| *byte == 0)
        .rev()
        .find_map(|argument| {
            let at = memchr::memmem::find(argument, OPTION)?;
            let is_option = at == 0 || argument.starts_with(b"-X");
            is_option.then(|| &argument[at + OPTION.len()..] != b"=0")
        });
    option.unwrap_or_else(|| {
        let mut all = environment.split(|byte| *byte == 0);
        let value = all.find_map(|variable| variable.strip_prefix(VARIABLE));
        value.is_some_and(|value| !value.is_empty() && value != b"0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The option and the variable, on and off; the option, where it is given, is what counts.
    #[test]
    fn options_and_variables() {
        let cases: [(&[u8], &[u8], bool); 9] = [
            (b"python3\0app.py\0", b"HOME=/\0", false),
            (
                b"python3\0-X\0thread_inherit_context=1\0app.py\0",
                b"",
                true,
            ),
            (b"python3\0-Xthread_inherit_context\0app.py\0", b"", true),
            (b"python3\0-Xthread_inherit_context=0\0app.py\0", b"", false),
            (
                b"python3\0",
                b"A=b\0PYTHON_THREAD_INHERIT_CONTEXT=1\0",
                true,
            ),
            (b"python3\0", b"PYTHON_THREAD_INHERIT_CONTEXT=0\0", false),
            (b"python3\0", b"PYTHON_THREAD_INHERIT_CONTEXT=\0", false),
            (
                b"python3\0-X\0thread_inherit_context=0\0",
                b"PYTHON_THREAD_INHERIT_CONTEXT=1\0",
                false,
            ),
            (b"python3\0/srv/my_thread_inherit_context.py\0", b"", false),
        ];
        for (arguments, environment, wanted) in cases {
            assert_eq!(
                says_so(arguments, environment),
                wanted,
                "{}",
                String::from_utf8_lossy(arguments)
            );
        }
    }

    /// This very process was not told so; one that cannot be read may have been; one of an older CPython cannot.
    #[test]
    fn processes() {
        assert!(!hands_on_contexts(std::process::id(), FIRST));
        assert!(hands_on_contexts(u32::MAX, FIRST));
        assert!(!hands_on_contexts(u32::MAX, Version::new(3, 13, 7)));
    }
}
