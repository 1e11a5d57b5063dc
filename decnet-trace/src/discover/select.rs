//! Which processes the user asked for.

use globset::{Glob, GlobSet, GlobSetBuilder};
use thiserror::Error;

use super::command::{Command, Program};

/// A pattern of `--name` that is none.
#[derive(Debug, Error)]
#[error("{option} {pattern}: {reason}; write a glob, as 'shop*'")]
pub struct SelectorError {
    option: &'static str,
    pattern: String,
    reason: String,
}

/// Which children of the processes asked for are traced with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Children {
    /// None.
    None,
    /// Those that run the same program: workers of a server.
    #[default]
    Workers,
    /// All of them, and theirs, whatever they run.
    All,
}

/// What `--pid`, `--name` and `--port` ask for; without any of them, every Python web server.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    pids: Vec<u32>,
    names: GlobSet,
    ports: Vec<u16>,
    excluded: GlobSet,
    children: Children,
}

impl Selector {
    /// A selector of processes that any of the options names.
    ///
    /// # Errors
    ///
    /// When a name is not a valid glob.
    pub fn new(pids: &[u32], names: &[String], ports: &[u16]) -> Result<Self, SelectorError> {
        Ok(Self {
            pids: pids.to_vec(),
            names: globs("--name", names)?,
            ports: ports.to_vec(),
            excluded: GlobSet::empty(),
            children: Children::default(),
        })
    }

    /// The same, without processes that any of these names matches, whatever else asks for them but
    /// their pid.
    ///
    /// # Errors
    ///
    /// When a name is not a valid glob.
    pub fn without(mut self, names: &[String]) -> Result<Self, SelectorError> {
        self.excluded = globs("--exclude", names)?;
        Ok(self)
    }

    /// The same, with these children.
    #[must_use]
    pub fn with_children(mut self, children: Children) -> Self {
        self.children = children;
        self
    }

    /// Which children are traced with the processes asked for.
    pub const fn children(&self) -> Children {
        self.children
    }

    /// Whether nothing was asked for in particular.
    pub fn is_default(&self) -> bool {
        self.pids.is_empty() && self.names.is_empty() && self.ports.is_empty()
    }

    /// The processes asked for by pid.
    pub fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// The TCP ports asked for.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Whether processes were asked for by name.
    pub fn has_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// Whether a process of this name, this executable and, for Python, this command was asked for by
    /// name. A Python command goes by the names of its module, its script and its application.
    pub fn matches_name(&self, comm: &str, exe: &str, command: Option<&Command>) -> bool {
        matches_any(&self.names, comm, exe, command)
    }

    /// Whether it is to be left alone: the same names count.
    pub fn excludes(&self, pid: u32, comm: &str, exe: &str, command: Option<&Command>) -> bool {
        !self.excluded.is_empty()
            && !self.pids.contains(&pid)
            && matches_any(&self.excluded, comm, exe, command)
    }
}

fn globs(option: &'static str, patterns: &[String]) -> Result<GlobSet, SelectorError> {
    let wrong = |pattern: &str, error: globset::Error| SelectorError {
        option,
        pattern: pattern.to_owned(),
        reason: error.kind().to_string(),
    };
    let mut globs = GlobSetBuilder::new();
    for pattern in patterns {
        globs.add(Glob::new(pattern).map_err(|error| wrong(pattern, error))?);
    }
    globs
        .build()
        .map_err(|error| wrong(&patterns.join(" "), error))
}

fn matches_any(globs: &GlobSet, comm: &str, exe: &str, command: Option<&Command>) -> bool {
    let matches = |name: &str| globs.is_match(name);
    matches(comm)
        || matches(exe)
        || command.is_some_and(|command| {
            command.tool().is_some_and(matches)
                || match &command.program {
                    Program::Module(module) => matches(module),
                    Program::Script(script) => script.rsplit('/').next().is_some_and(matches),
                    Program::Inline(_) | Program::Title(_) | Program::Stdin => false,
                }
                || command
                    .app()
                    .is_some_and(|app| matches(app) || app.split(':').next().is_some_and(matches))
        })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn by_name(pattern: &str, comm: &str, exe: &str, line: &str) -> bool {
        let cmdline: Vec<String> = line.split('|').map(str::to_owned).collect();
        Selector::new(&[], &[pattern.to_owned()], &[])
            .unwrap()
            .matches_name(comm, exe, Some(&Command::parse(&cmdline)))
    }

    /// A name is one of the process, its executable, module, script or application; globs match whole
    /// names.
    #[test]
    fn matches_names() {
        let shop = |pattern| {
            by_name(
                pattern,
                "worker-1",
                "python3.11",
                "python|/v/bin/uvicorn|shop.main:app",
            )
        };
        for pattern in [
            "worker-1",
            "python3*",
            "uvicorn",
            "uvi*",
            "shop.main",
            "shop.main:app",
            "shop*",
            "{x,uvicorn}",
        ] {
            assert!(shop(pattern), "{pattern}");
        }
        for pattern in ["worker", "ython*", "shop", "main", "bin", "[a-c]*"] {
            assert!(!shop(pattern), "{pattern}");
        }
        assert!(by_name("serve.py", "x", "y", "python|bin/serve.py"));
        assert!(by_name("serve", "x", "y", "python|bin/serve.py"));
        assert!(by_name("pkg.sub", "x", "y", "python|-m|pkg.sub"));
    }

    /// A broken glob is refused in one line that names it.
    #[test]
    fn refuses_broken_globs() {
        let error = Selector::new(&[], &["a[".to_owned()], &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("--name a[: ") && error.lines().count() == 1,
            "{error}"
        );
    }
}
