//! The routes that an application answers, learned from the source files that its process has loaded.
//!
//! From the module that the server was told to serve, imports are followed as the interpreter follows
//! them, in the directories that the process imports its own modules from. Nothing is executed:
//! [`source`] reads declarations, [`resolve`] puts routers where they were included. What cannot be told
//! for sure is left out; the paths of such routes are folded.

mod expr;
mod lex;
mod modules;
mod resolve;
mod source;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use rustc_hash::FxHashMap;

use self::modules::{Directory, Modules, Root};
use super::{
    command::{Command, Program},
    engine::TracedProcess,
    process::telling_command,
    procfs,
};
use crate::policy::template::Template;

/// The most services whose applications are remembered.
const SERVICES_MAX: usize = 256;

/// The most applications of one service.
const APPLICATIONS_MAX: usize = 8;

/// The most lines of /proc/PID/maps that are read.
const MAPS_MAX: usize = 65_536;

/// The most `.pth` files that are read.
const PTH_MAX: usize = 64;

/// What a server serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Served {
    /// A module, and an attribute of it.
    Module(String, Option<String>),
    /// A file, and an attribute of its module.
    File(PathBuf, Option<String>),
    /// It is not known.
    Unknown,
}

/// Where an application is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    directories: Vec<PathBuf>,
    served: Served,
    settings: Option<String>,
}

/// An application that was read.
#[derive(Debug)]
struct Known {
    place: Place,
    stamp: u64,
    templates: Vec<Template>,
}

/// Reads the routes of traced processes.
#[derive(Debug, Default)]
pub struct RouteReader {
    services: FxHashMap<String, Vec<Known>>,
}

impl RouteReader {
    /// The templates of all applications of a process's service, where they are others than before;
    /// `None` where nothing new was found.
    pub fn read(&mut self, traced: &TracedProcess) -> Option<Vec<Template>> {
        let pid = traced.process.pid;
        let found = Finder::of(pid, traced.process.ppid)?.find()?;
        self.take(&traced.resource.service_name, found)
    }

    fn take(&mut self, service: &str, found: Known) -> Option<Vec<Template>> {
        if self.services.len() >= SERVICES_MAX && !self.services.contains_key(service) {
            return None;
        }
        let known = self.services.entry(service.to_owned()).or_default();
        let count = known.len();
        match known.iter_mut().find(|known| known.place == found.place) {
            Some(before) if before.stamp == found.stamp => return None,
            // One that declares nothing any more may be half-written.
            Some(_) if found.templates.is_empty() => return None,
            Some(before) => *before = found,
            None if found.templates.is_empty() => return None,
            None if count >= APPLICATIONS_MAX => return None,
            None => known.push(found),
        }
        let all = known.iter().flat_map(|known| &known.templates);
        Some(all.cloned().collect())
    }
}

/// What is known of a process before its files are read.
struct Finder {
    root: Root,
    /// The working directory, as the process sees it, and as it can be opened.
    cwd: PathBuf,
    cwd_outside: PathBuf,
    place: Place,
    packages: Vec<PathBuf>,
}

impl Finder {
    fn of(pid: u32, ppid: u32) -> Option<Self> {
        let command = Command::parse(&procfs::cmdline(pid).ok()?);
        let (command, cwd) = telling_command(pid, ppid, command);
        let cwd = cwd?;
        let [path, settings, flask] =
            procfs::environment(pid, ["PYTHONPATH", "DJANGO_SETTINGS_MODULE", "FLASK_APP"])
                .unwrap_or_default();
        let path = path.unwrap_or_default();
        let path = path.split(':').filter(|part| !part.is_empty());
        let base = cwd.join(command.directory().unwrap_or_default());
        let served = served(&command, flask.as_deref(), &base);
        let mut directories: Vec<PathBuf> = match &served {
            Served::File(file, _) => file.parent().map(Path::to_owned).into_iter().collect(),
            _ => Vec::new(),
        };
        directories.push(base);
        directories.extend(path.map(|part| cwd.join(part)));
        directories.dedup();
        Some(Self {
            root: Root::open(&procfs::path(pid, "root")).ok()?,
            cwd_outside: procfs::path(pid, "cwd").join(command.directory().unwrap_or_default()),
            cwd,
            packages: site_packages(pid),
            place: Place {
                directories,
                served,
                settings,
            },
        })
    }

    fn find(self) -> Option<Known> {
        let Self {
            root,
            cwd,
            cwd_outside,
            place,
            packages,
        } = self;
        let all = |path: &PathBuf| Directory {
            path: path.clone(),
            only: None,
        };
        let mut directories: Vec<_> = place.directories.iter().map(all).collect();
        for packages in &packages {
            directories.extend(linked(&root, packages).iter().map(all));
            // An application may be installed as a package itself.
            let served = match &place.served {
                Served::Module(module, _) => Some(module),
                _ => place.settings.as_ref(),
            };
            if let Some(top) = served.and_then(|module| module.split('.').next()) {
                directories.push(Directory {
                    path: packages.clone(),
                    only: Some(top.to_owned()),
                });
            }
        }
        let mut modules = Modules::new(root, directories);
        let settings = place.settings.as_ref().and_then(|name| modules.load(name));
        let served = match &place.served {
            Served::Module(name, attribute) => modules.load(name).map(|id| (id, attribute)),
            Served::File(path, attribute) => {
                let name = path.file_stem()?.to_str()?;
                modules.load_file(name, path).map(|id| (id, attribute))
            }
            Served::Unknown => None,
        };
        let served = served.map(|(id, attribute)| (id, attribute.as_deref()));
        let mut templates = resolve::templates(&modules, served, settings);
        if templates.is_empty() && cwd != Path::new("/") {
            // It is not known what is served, so nothing is taken that every path would fit.
            modules.load_below(&cwd_outside);
            templates = resolve::templates(&modules, None, settings);
            templates.retain(|template| !template.is_catch_all());
        }
        Some(Known {
            stamp: modules.stamp(),
            place,
            templates,
        })
    }
}

/// What a command line says is served.
fn served(command: &Command, flask: Option<&str>, base: &Path) -> Served {
    let attribute = |text: &str| {
        let text = text.split('(').next().unwrap_or_default();
        Some(text.to_owned()).filter(|text| !text.is_empty())
    };
    let named = |app: &str| {
        let (module, name) = match app.split_once(':') {
            Some((module, name)) => (module, attribute(name)),
            None => (app, None),
        };
        match module.ends_with(".py") {
            true => Served::File(base.join(module), name.or_else(|| attribute("app"))),
            false => Served::Module(module.to_owned(), name.or_else(|| attribute("application"))),
        }
    };
    if let Some(app) = command.app() {
        return named(app);
    }
    if command.tool() == Some("flask") {
        let mut arguments = command.arguments.iter();
        let told = arguments
            .find(|argument| matches!(argument.as_str(), "--app" | "-A"))
            .and_then(|_| arguments.next());
        return match told.map(String::as_str).or(flask) {
            Some(app) => named(app),
            None => Served::Unknown,
        };
    }
    match &command.program {
        _ if command.server().is_some() => Served::Unknown,
        Program::Module(name) => Served::Module(format!("{name}.__main__"), None),
        Program::Script(script) => Served::File(base.join(script), None),
        _ => Served::Unknown,
    }
}

/// The directories of installed packages that a process has mapped libraries of.
fn site_packages(pid: u32) -> Vec<PathBuf> {
    let Ok(file) = File::open(procfs::path(pid, "maps")) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = Vec::new();
    for line in BufReader::new(file).split(b'\n').take(MAPS_MAX).flatten() {
        let line = String::from_utf8_lossy(&line);
        let Some((_, path)) = line.split_once('/') else {
            continue;
        };
        for folder in ["/site-packages/", "/dist-packages/"] {
            if let Some(at) = path.find(folder) {
                let path = PathBuf::from(format!("/{}", &path[..at + folder.len() - 1]));
                if !found.contains(&path) {
                    found.push(path);
                }
            }
        }
    }
    found
}

/// The directories that `.pth` files add: packages that were installed in place.
fn linked(root: &Root, packages: &Path) -> Vec<PathBuf> {
    let files = root.list(packages);
    let files = files
        .iter()
        .filter(|name| name.ends_with(".pth"))
        .take(PTH_MAX);
    files
        .filter_map(|name| root.text(&packages.join(name)))
        .flat_map(|text| {
            let lines: Vec<_> = text
                .lines()
                .filter(|line| line.starts_with('/'))
                .map(PathBuf::from)
                .collect();
            lines
        })
        .collect()
}
