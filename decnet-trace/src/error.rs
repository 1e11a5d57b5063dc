//! What ends a command: one line that says what failed, why, and what to do, and an exit code.

use std::{fmt, process::ExitCode};

/// The exit codes, which scripts rely on.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Done = 0,
    /// It failed at work.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// This kernel, or these privileges, can't.
    Unsupported = 3,
    /// There is no such target.
    NoTarget = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure that ends a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    exit: Exit,
    message: String,
}

/// The result of a command or of a part of it.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// It failed at work.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The command line or the configuration is wrong.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// This kernel, or these privileges, can't.
    pub fn unsupported(message: impl fmt::Display) -> Self {
        Self::new(Exit::Unsupported, message)
    }

    /// There is no such target.
    pub fn no_target(message: impl fmt::Display) -> Self {
        Self::new(Exit::NoTarget, message)
    }

    /// The exit code.
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// Line ends become blanks: an error is one line, whatever a library says.
    fn new(exit: Exit, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let message = message
            .split(['\n', '\r'])
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        Self { exit, message }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a library says over several lines comes out as one.
    #[test]
    fn an_error_is_one_line() {
        let error = Error::failed("the kernel refused it:\r\n  reason one\n\n  reason two\n");
        assert_eq!(
            error.to_string(),
            "the kernel refused it: reason one reason two"
        );
        assert_eq!(error.exit(), Exit::Failed);
    }
}
