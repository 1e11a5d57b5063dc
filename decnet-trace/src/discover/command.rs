//! What a Python process runs, read from its command line.

use std::path::Path;

/// Servers, by the name of their module or script, whose processes are traced from the moment they
/// start, before they listen.
const SERVERS: &[&str] = &[
    "uvicorn",
    "gunicorn",
    "hypercorn",
    "granian",
    "daphne",
    "fastapi",
    "sanic",
    "litestar",
    "robyn",
    "waitress-serve",
    "uwsgi",
];

/// Programs that run another program given as their arguments.
const WRAPPERS: &[&str] = &[
    "cProfile",
    "coverage",
    "debugpy",
    "memray",
    "pdb",
    "profile",
    "pyinstrument",
    "scalene",
    "trace",
    "viztracer",
];

/// What the interpreter was told to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// `-m NAME`
    Module(String),
    /// A file, a directory or an archive.
    Script(String),
    /// `-c CODE`
    Inline(String),
    /// A title that the process wrote over its command line (setproctitle).
    Title(String),
    /// Nothing: its standard input, or a prompt.
    Stdin,
}

/// A Python command line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// What runs.
    pub program: Program,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Command {
    /// Parses a command line whose first argument is the interpreter's name.
    ///
    /// A wrapper (`python -m debugpy --listen 5678 -m uvicorn shop:app`) is seen through.
    pub fn parse(cmdline: &[String]) -> Self {
        let mut command = Self::parse_interpreter(cmdline);
        if command.tool().is_some_and(|tool| WRAPPERS.contains(&tool))
            && let Some(inner) = wrapped(&command.arguments)
        {
            command = inner;
        }
        command
    }

    fn parse_interpreter(cmdline: &[String]) -> Self {
        // uWSGI is its own interpreter.
        if let Some((program, arguments)) = cmdline.split_first()
            && program
                .rsplit('/')
                .next()
                .is_some_and(|name| name.starts_with("uwsgi"))
        {
            return Self::new(Program::Script("uwsgi".to_owned()), arguments);
        }
        // Written titles are one argument of several words, or have lost the interpreter's name.
        if let [title] = cmdline
            && title.contains(": ")
        {
            return Self::new(Program::Title(title.clone()), &[]);
        }
        let mut rest = cmdline.get(1..).unwrap_or_default();
        while let Some((argument, behind)) = rest.split_first() {
            rest = behind;
            let Some(letters) = argument.strip_prefix('-') else {
                return Self::new(Program::Script(argument.clone()), rest);
            };
            if letters.is_empty() {
                break;
            }
            if let Some(long) = letters.strip_prefix('-') {
                // `--check-hash-based-pycs MODE` is the one long option that takes a value.
                if long == "check-hash-based-pycs" {
                    rest = rest.get(1..).unwrap_or_default();
                }
                continue;
            }
            // Short options may stand together; one with a value takes the rest of the argument or
            // the next one. `-c` and `-m` end the interpreter's own options.
            let Some(at) = letters.find(['c', 'm', 'W', 'X', 'Q']) else {
                continue;
            };
            let (option, value) = (letters.as_bytes()[at], &letters[at + 1..]);
            let value = if value.is_empty() {
                let Some((next, behind)) = rest.split_first() else {
                    break;
                };
                rest = behind;
                next.as_str()
            } else {
                value
            };
            match option {
                b'c' => return Self::new(Program::Inline(value.to_owned()), rest),
                b'm' => return Self::new(Program::Module(value.to_owned()), rest),
                _ => {}
            }
        }
        Self::new(Program::Stdin, rest)
    }

    fn new(program: Program, arguments: &[String]) -> Self {
        Self {
            program,
            arguments: arguments.to_vec(),
        }
    }

    /// The program's own name: of a module its first segment, of a script its file's stem.
    pub fn tool(&self) -> Option<&str> {
        match &self.program {
            Program::Module(module) => module.split('.').next(),
            Program::Script(script) => Path::new(script).file_stem()?.to_str(),
            Program::Title(title) => title.split(':').next(),
            Program::Inline(_) | Program::Stdin => None,
        }
        .filter(|tool| !tool.is_empty())
    }

    /// The web server that runs, where the command line names one.
    pub fn server(&self) -> Option<&'static str> {
        let tool = self.tool()?;
        SERVERS.iter().copied().find(|&server| server == tool)
    }

    /// Whether it is a child that `multiprocessing` started by the methods `spawn` or `forkserver`:
    /// its command line tells nothing about the program, which is its parent's.
    ///
    /// Its resource tracker is not meant: it runs none of the program.
    pub fn is_multiprocessing_child(&self) -> bool {
        let Program::Inline(code) = &self.program else {
            return false;
        };
        code.contains("multiprocessing.spawn") || code.contains("multiprocessing.forkserver")
    }

    /// The directory that a server was told to find its application in.
    pub(super) fn directory(&self) -> Option<&str> {
        self.server()?;
        let mut arguments = self.arguments.iter();
        while let Some(argument) = arguments.next() {
            for option in ["--app-dir", "--chdir"] {
                if argument == option {
                    return arguments.next().map(String::as_str);
                }
                let value = argument.strip_prefix(option);
                if let Some(directory) = value.and_then(|value| value.strip_prefix('=')) {
                    return Some(directory);
                }
            }
        }
        None
    }

    /// The application that a web server was told to serve: `shop.main:app`, a dotted module, or a
    /// file of Python.
    pub fn app(&self) -> Option<&str> {
        if let Program::Title(title) = &self.program {
            // `gunicorn: master [shop.main:app]`
            return title.split_once('[')?.1.strip_suffix(']');
        }
        self.server()?;
        let arguments = &self.arguments;
        // What stands behind an option may be its value (`--header Server:shop`), or the application
        // behind a flag (`--reload shop:app`): that is taken only where nothing better is there.
        let option_before = |at: usize| {
            let before = arguments.get(at.checked_sub(1)?)?.as_str();
            (before.starts_with('-') && !before.contains('=')).then_some(before)
        };
        let is_value = |at| option_before(at).is_some_and(takes_value);
        let mut apps = arguments
            .iter()
            .enumerate()
            .filter(|(_, text)| is_app(text));
        let mut files = arguments.iter().enumerate();
        let last = arguments.len().checked_sub(1)?;
        apps.clone()
            .find(|&(at, _)| option_before(at).is_none())
            .or_else(|| apps.find(|&(at, _)| !is_value(at)))
            .or_else(|| files.find(|&(at, text)| is_python_file(text) && !is_value(at)))
            .map(|(_, text)| text.as_str())
            .or_else(|| {
                // `gunicorn -w 4 shop.wsgi`: the module alone, last.
                let text = arguments[last].as_str();
                (is_dotted(text) && !is_value(last) && !is_subcommand(text)).then_some(text)
            })
    }
}

/// Parses the command line of the program that a wrapper runs.
fn wrapped(arguments: &[String]) -> Option<Command> {
    let at = arguments.iter().position(|argument| {
        argument == "-m"
            || is_python_file(argument)
            || Path::new(argument)
                .file_stem()
                .and_then(|stem| stem.to_str())
                .is_some_and(|stem| SERVERS.contains(&stem))
    })?;
    let inner = &arguments[at..];
    let (program, rest) = match inner.first()?.as_str() {
        "-m" => (Program::Module(inner.get(1)?.clone()), inner.get(2..)?),
        script => (Program::Script(script.to_owned()), inner.get(1..)?),
    };
    Some(Command::new(program, rest))
}

/// Options of servers whose value can look like an application or its file.
fn takes_value(option: &str) -> bool {
    const OPTIONS: &[&str] = &[
        "--header",
        "--host",
        "--bind",
        "--loop",
        "--http",
        "--ws",
        "--lifespan",
        "--interface",
        "--log-level",
        "--log-config",
        "--access-logfile",
        "--error-logfile",
        "--worker-class",
        "--worker-tmp-dir",
        "--config",
        "--chdir",
        "--app-dir",
        "--name",
        "--user",
        "--group",
        "--port",
        "--workers",
        "--endpoint",
        "--root-path",
        "--env-file",
        "-b",
        "-c",
        "-g",
        "-k",
        "-n",
        "-u",
    ];
    OPTIONS.contains(&option)
}

/// Words that servers' command lines begin with.
fn is_subcommand(word: &str) -> bool {
    matches!(word, "run" | "dev" | "serve" | "start")
}

/// `module.path:attribute`, where the attribute may be a call of a factory.
fn is_app(text: &str) -> bool {
    let Some((module, attribute)) = text.split_once(':') else {
        return false;
    };
    let attribute = attribute.strip_suffix("()").unwrap_or(attribute);
    let is_file = module
        .strip_suffix(".py")
        .is_some_and(|stem| !stem.is_empty());
    (is_dotted(module) || is_file) && is_dotted(attribute)
}

fn is_python_file(text: &str) -> bool {
    !text.starts_with('-') && text.len() > 3 && text.ends_with(".py")
}

/// Names of Python, joined by dots.
fn is_dotted(text: &str) -> bool {
    text.split('.').all(|name| {
        name.chars()
            .next()
            .is_some_and(|first| first == '_' || first.is_alphabetic())
            && name.chars().all(|c| c == '_' || c.is_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Command {
        let cmdline: Vec<String> = line.split('|').map(str::to_owned).collect();
        Command::parse(&cmdline)
    }

    /// The interpreter's options are skipped as the interpreter skips them.
    #[test]
    fn finds_the_program() {
        let module = |name: &str| Program::Module(name.to_owned());
        let script = |name: &str| Program::Script(name.to_owned());
        for (line, expected) in [
            ("python|-m|uvicorn|a:b", module("uvicorn")),
            ("python|-muvicorn", module("uvicorn")),
            ("python|-Im|pkg.sub", module("pkg.sub")),
            ("python|-u|-W|ignore|-X|dev|app.py|-m", script("app.py")),
            ("python|-Wignore|-Xdev|app.py", script("app.py")),
            (
                "python|--check-hash-based-pycs|always|app.py",
                script("app.py"),
            ),
            ("python|-uc|print(1)|x", Program::Inline("print(1)".into())),
            ("python|-", Program::Stdin),
            ("python", Program::Stdin),
            ("python|-m", Program::Stdin),
            (
                "python|-m|debugpy|--listen|5678|-m|uvicorn|a:b",
                module("uvicorn"),
            ),
            ("python|-m|cProfile|-o|out|serve.py", script("serve.py")),
            (
                "python|-m|coverage|run|/venv/bin/gunicorn|a:b",
                script("/venv/bin/gunicorn"),
            ),
            (
                "gunicorn: master [a:b]",
                Program::Title("gunicorn: master [a:b]".into()),
            ),
        ] {
            assert_eq!(parse(line).program, expected, "{line}");
        }
    }

    /// The application is found wherever a server's options leave it, and values are not taken for it.
    #[test]
    fn finds_the_application() {
        for (line, expected) in [
            (
                "python|-m|uvicorn|shop.main:app|--port|80",
                Some("shop.main:app"),
            ),
            (
                "python|/venv/bin/uvicorn|--reload|shop.main:app",
                Some("shop.main:app"),
            ),
            (
                "python|uvicorn|--factory|shop:create_app",
                Some("shop:create_app"),
            ),
            (
                "python|uvicorn|--header|Server:shop|shop:app",
                Some("shop:app"),
            ),
            (
                "python|uvicorn|shop:app|--header|Server:x",
                Some("shop:app"),
            ),
            ("python|uvicorn|--host|localhost:8000|--header|A:b", None),
            (
                "python|gunicorn|-k|uvicorn.workers.UvicornWorker|-w|4|shop.main:app",
                Some("shop.main:app"),
            ),
            (
                "python|gunicorn|-b|unix:/run/x|shop:create()",
                Some("shop:create()"),
            ),
            ("python|gunicorn|-w|4|shop.wsgi", Some("shop.wsgi")),
            ("python|gunicorn|--preload|shop.wsgi", Some("shop.wsgi")),
            ("python|gunicorn|-k|gevent", None),
            ("python|gunicorn|-c|gunicorn.conf.py", None),
            (
                "python|fastapi|run|--reload|shop/main.py",
                Some("shop/main.py"),
            ),
            (
                "uwsgi|--http|:80|--module|shop.wsgi:application",
                Some("shop.wsgi:application"),
            ),
            (
                "python|hypercorn|shop/main.py:app",
                Some("shop/main.py:app"),
            ),
            (
                "python|hypercorn|--bind|0.0.0.0:80|shop:app",
                Some("shop:app"),
            ),
            ("python|granian|--interface|asgi|shop:app", Some("shop:app")),
            (
                "python|daphne|-p|80|shop.asgi:application",
                Some("shop.asgi:application"),
            ),
            ("python|fastapi|run|shop/main.py", Some("shop/main.py")),
            ("python|fastapi|run", None),
            ("gunicorn: worker [shop.main:app]", Some("shop.main:app")),
            ("python|app.py|shop:app", None),
        ] {
            assert_eq!(parse(line).app(), expected, "{line}");
        }
    }

    /// The directory of the application is found in both forms of the option, of servers only.
    #[test]
    fn finds_the_directory() {
        for (line, expected) in [
            (
                "python|uvicorn|--app-dir|/srv/shop|main:app",
                Some("/srv/shop"),
            ),
            ("python|gunicorn|main:app|--chdir=shop", Some("shop")),
            ("python|uvicorn|main:app|--app-dir", None),
            ("python|serve.py|--app-dir|/srv/shop", None),
        ] {
            assert_eq!(parse(line).directory(), expected, "{line}");
        }
    }

    /// Servers are known by module, by script and by title.
    #[test]
    fn recognises_servers() {
        for (line, expected) in [
            ("python|-m|uvicorn", Some("uvicorn")),
            ("python|-m|gunicorn.app.wsgiapp", Some("gunicorn")),
            ("python|/usr/bin/hypercorn|a:b", Some("hypercorn")),
            ("gunicorn: worker [a:b]", Some("gunicorn")),
            ("python|app.py|uvicorn", None),
            ("python|-c|import uvicorn", None),
            ("python|uvicorn_helper.py", None),
        ] {
            assert_eq!(parse(line).server(), expected, "{line}");
        }
    }

    /// Children of multiprocessing are recognised, its resource tracker is not one of them.
    #[test]
    fn recognises_multiprocessing_children() {
        for (line, expected) in [
            (
                "python|-c|from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5, pipe_handle=7)|--multiprocessing-fork",
                true,
            ),
            (
                "python|-c|from multiprocessing.forkserver import main; main(1, 2)",
                true,
            ),
            (
                "python|-c|from multiprocessing.resource_tracker import main;main(5)",
                false,
            ),
            ("python|app.py|multiprocessing.spawn", false),
        ] {
            assert_eq!(parse(line).is_multiprocessing_child(), expected, "{line}");
        }
    }

    proptest! {
        /// No command line makes the parser panic.
        #[test]
        fn survives_any_command_line(
            cmdline in proptest::collection::vec("(-[a-zX]{0,3}|\\PC{0,12}|[a-z.:()]{0,12})", 0..8),
        ) {
            let command = Command::parse(&cmdline);
            let _ = (command.app(), command.server(), command.tool(), command.directory());
            let _ = command.is_multiprocessing_child();
        }
    }
}
