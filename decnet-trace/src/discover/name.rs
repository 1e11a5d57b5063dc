//! What a service is called.
//!
//! In this order, the first that there is:
//! 1. `OTEL_SERVICE_NAME` of the process's environment,
//! 2. `service.name` in its `OTEL_RESOURCE_ATTRIBUTES`,
//! 3. what its command line runs: the application's module without a trailing `main`, `app`, `asgi`…
//!    (`uvicorn shop.main:app` → `shop`), the module of `python -m`, the script's stem,
//! 4. where those are such generic names alone (`uvicorn main:app`): the directory that holds them,
//!    unless it too is generic (`/app`),
//! 5. the container's name, where Docker tells it,
//! 6. the generic name itself, the server's name, the process's own name.

use std::path::{Path, PathBuf};

use super::command::{Command, Program};

/// Names of modules and scripts that tell nothing about the service.
const GENERIC_MODULES: &[&str] = &[
    "__init__",
    "__main__",
    "app",
    "application",
    "asgi",
    "main",
    "manage",
    "run",
    "wsgi",
];

/// Names of directories that tell nothing about the service.
const GENERIC_DIRECTORIES: &[&str] = &[
    "app",
    "application",
    "backend",
    "bin",
    "build",
    "code",
    "current",
    "home",
    "opt",
    "project",
    "root",
    "source",
    "src",
    "srv",
    "tmp",
    "usr",
    "work",
    "workdir",
    "workspace",
];

/// What names a service.
#[derive(Clone, Debug, Default)]
pub(super) struct Clues<'a> {
    /// `OTEL_SERVICE_NAME`.
    pub otel_name: Option<&'a str>,
    /// `service.name` of `OTEL_RESOURCE_ATTRIBUTES`.
    pub otel_attribute: Option<&'a str>,
    /// The Python command line.
    pub command: Option<&'a Command>,
    /// The working directory.
    pub cwd: Option<&'a Path>,
    /// The container's name.
    pub container: Option<&'a str>,
    /// The process's own name.
    pub comm: &'a str,
}

/// Names the service, in the order that this module's head gives.
pub(super) fn service_name(clues: &Clues<'_>) -> String {
    let (own, directory) = clues.command.map_or((None, None), |command| {
        program_name(command, clues.cwd.unwrap_or(Path::new("/")))
    });
    let telling = own.as_deref().filter(|name| !is_generic(name));
    let server = clues.command.and_then(Command::server);
    [
        clues.otel_name,
        clues.otel_attribute,
        telling,
        directory.as_deref(),
        clues.container,
        own.as_deref(),
        server,
    ]
    .into_iter()
    .flatten()
    .map(str::trim)
    .find(|name| !name.is_empty())
    .unwrap_or(clues.comm)
    .to_owned()
}

/// The name that the program has by itself, and that of the directory that holds it.
fn program_name(command: &Command, cwd: &Path) -> (Option<String>, Option<String>) {
    let cwd = &cwd.join(command.directory().unwrap_or_default());
    let from_module = |module: &str| {
        let name = strip_generic(module);
        (Some(name.to_owned()), directory_name(cwd))
    };
    let from_file = |file: &str| {
        let path: PathBuf = cwd.join(file);
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .map(str::to_owned);
        (stem, path.parent().and_then(directory_name))
    };
    if let Some(app) = command.app() {
        // The attribute is cut off; what is left is a module or a file.
        let module = app.rsplit_once(':').map_or(app, |(module, _)| module);
        return if module.ends_with(".py") {
            from_file(module)
        } else {
            from_module(module)
        };
    }
    if command.server().is_some() {
        // Its application stands in a configuration file, or is looked for in the directory.
        return (None, directory_name(cwd));
    }
    match &command.program {
        Program::Module(module) => from_module(module),
        Program::Script(script) => from_file(script),
        Program::Title(title) => {
            let name = title.split([':', ' ']).next().unwrap_or_default();
            (Some(name.to_owned()), None)
        }
        Program::Inline(_) | Program::Stdin => (None, None),
    }
}

/// Cuts generic names off the end of a module's path, down to its first name.
fn strip_generic(module: &str) -> &str {
    let mut name = module;
    while let Some((front, last)) = name.rsplit_once('.') {
        if !is_generic(last) {
            break;
        }
        name = front;
    }
    name
}

fn is_generic(name: &str) -> bool {
    GENERIC_MODULES.contains(&name)
}

/// The directory's name; of a generic one, such as `shop/src`, its parent's.
fn directory_name(path: &Path) -> Option<String> {
    path.ancestors()
        .take(3)
        .filter_map(|directory| directory.file_name()?.to_str())
        .find(|name| !GENERIC_DIRECTORIES.contains(name))
        .filter(|name| !name.starts_with('.'))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(line: &str, cwd: &str) -> String {
        let cmdline: Vec<String> = line.split('|').map(str::to_owned).collect();
        let command = Command::parse(&cmdline);
        service_name(&Clues {
            command: Some(&command),
            cwd: Some(Path::new(cwd)),
            comm: "python3",
            ..Clues::default()
        })
    }

    /// Command lines give the names that their operators would give.
    #[test]
    fn names_services() {
        for (line, cwd, expected) in [
            ("python|-m|uvicorn|shop.main:app", "/srv/x", "shop"),
            (
                "python|/venv/bin/uvicorn|shop.api.main:app",
                "/",
                "shop.api",
            ),
            ("python|uvicorn|shop.api:app", "/", "shop.api"),
            ("python|uvicorn|main:app", "/srv/shop", "shop"),
            ("python|uvicorn|app.main:app", "/srv/web/shop", "shop"),
            ("python|uvicorn|main:app", "/app", "main"),
            (
                "python|uvicorn|main:app|--app-dir|/srv/shop",
                "/app",
                "shop",
            ),
            ("python|gunicorn|--chdir|shop|main:app", "/srv", "shop"),
            ("python|uvicorn|main:app", "/srv/shop/src", "shop"),
            ("python|uvicorn|server:app", "/srv/shop", "server"),
            (
                "python|gunicorn|-k|uvicorn.workers.UvicornWorker|shop.main:app",
                "/",
                "shop",
            ),
            ("python|gunicorn|-c|gunicorn.conf.py", "/srv/shop", "shop"),
            ("gunicorn: worker [shop.main:app]", "/", "shop"),
            ("gunicorn: master [shop]", "/", "shop"),
            ("celery: main", "/", "celery"),
            ("python|gunicorn", "/srv/shop", "shop"),
            ("python|gunicorn", "/app", "gunicorn"),
            ("python|fastapi|run|shop/main.py", "/srv", "shop"),
            ("python|fastapi|run", "/srv/shop", "shop"),
            ("python|-m|shop", "/", "shop"),
            ("python|-m|shop.web.__main__", "/", "shop.web"),
            ("python|/usr/local/bin/decnet-web", "/", "decnet-web"),
            ("python|serve.py", "/srv/shop", "serve"),
            ("python|main.py", "/srv/shop", "shop"),
            ("python|/srv/shop/app.py", "/", "shop"),
            ("python|manage.py|runserver", "/srv/shop", "shop"),
            ("python|-c|import uvicorn", "/srv/shop", "python3"),
            ("python", "/srv/shop", "python3"),
        ] {
            assert_eq!(named(line, cwd), expected, "{line} in {cwd}");
        }
    }

    /// OpenTelemetry's own variables come first, the container's name before a generic one.
    #[test]
    fn keeps_the_order() {
        let cmdline = ["python", "uvicorn", "main:app"].map(str::to_owned);
        let command = Command::parse(&cmdline);
        let mut clues = Clues {
            otel_name: Some("a"),
            otel_attribute: Some("b"),
            command: Some(&command),
            cwd: Some(Path::new("/app")),
            container: Some("c"),
            comm: "d",
        };
        assert_eq!(service_name(&clues), "a");
        clues.otel_name = Some("");
        assert_eq!(service_name(&clues), "b");
        clues.otel_attribute = None;
        assert_eq!(service_name(&clues), "c");
        clues.container = None;
        assert_eq!(service_name(&clues), "main");
        clues.command = None;
        assert_eq!(service_name(&clues), "d");
    }

    proptest! {
        /// Every command line gives some name, whatever it contains.
        #[test]
        fn always_names(cmdline in proptest::collection::vec("[a-z./:\\[\\]é -]{0,12}", 0..6), cwd in "\\PC{0,12}") {
            let command = Command::parse(&cmdline);
            let name = service_name(&Clues {
                command: Some(&command),
                cwd: Some(Path::new(&cwd)),
                comm: "x",
                ..Clues::default()
            });
            prop_assert!(!name.is_empty());
        }
    }
}
