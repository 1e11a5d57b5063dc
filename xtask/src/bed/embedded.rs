//! A CPython with SQLite linked into the program itself, as portable distributions of Python have it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::venv;
use crate::{
    command::{logged, output, say},
    paths,
};

/// The module `_sqlite3` with its sources: CPython's own, on PyPI.
const MODULE: &str = "pysqlite3";
const VERSION: &str = "0.5.4";

/// Time for one step: SQLite is one long file.
const LIMIT: Duration = Duration::from_secs(300);

/// The CPythons that are looked for.
const SERIES: [&str; 3] = ["3.12", "3.13", "3.10"];

/// A program that embeds CPython, the module and SQLite's amalgamation, none of which exports its functions.
const PROGRAM: &str = r#"#include <Python.h>
extern PyObject *PyInit__sqlite3(void);
int main(int argc, char **argv) {
    PyImport_AppendInittab("pysqlite3._sqlite3", PyInit__sqlite3);
    return Py_BytesMain(argc, argv);
}
"#;

/// Interpreters whose module `pysqlite3` has its SQLite in the program.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// One with its symbol table.
    pub python: PathBuf,
    /// The same without.
    pub stripped: PathBuf,
}

/// Builds them with the C compiler, unless the cache has them.
///
/// # Errors
/// There is no static CPython, no SQLite among Cargo's sources or no compiler, or something does not build.
pub fn ensure() -> Result<Embedded> {
    let dir = paths::cache()?.join(format!("embedded-python-{MODULE}-{VERSION}"));
    let embedded = Embedded {
        python: dir.join("python"),
        stripped: dir.join("python-stripped"),
    };
    let _lock = paths::lock("embedded-python")?;
    if !dir.join("complete").exists() {
        say("building a CPython with SQLite in it");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot clear {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        build(&dir)?;
        fs::write(dir.join("complete"), "")
            .with_context(|| format!("cannot write to {}", dir.display()))?;
    }
    Ok(embedded)
}

fn build(dir: &Path) -> Result<()> {
    let log = dir.join("log");
    let (series, home, include, library) = static_python()?;
    let sqlite = amalgamation()?;
    let mut pip = venv::installers()?.pip();
    pip.args(["download", "--quiet", "--no-deps"])
        .args(["--no-binary", ":all:", "--dest"])
        .arg(dir)
        .arg(format!("{MODULE}=={VERSION}"));
    logged(&mut pip, &log, LIMIT).context("cannot get pysqlite3's sources from PyPI")?;
    let name = format!("{MODULE}-{VERSION}");
    let mut tar = Command::new("tar");
    tar.args(["--no-same-owner", "-xzf"])
        .arg(dir.join(format!("{name}.tar.gz")))
        .arg("-C")
        .arg(dir);
    logged(&mut tar, &log, LIMIT)?;
    let module = dir.join(name);
    let program = dir.join("program.c");
    fs::write(&program, PROGRAM).with_context(|| format!("cannot write {}", program.display()))?;
    let sources = fs::read_dir(module.join("src")).context("pysqlite3 has no sources")?;
    let sources = sources
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"));
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    // Named as Python's programs are, or it is not taken for one.
    let place = |name: &str| -> Result<PathBuf> {
        let folder = dir.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder.join(format!("python{series}")))
    };
    let (binary, bare) = (place("full")?, place("bare")?);
    let mut cc = Command::new(compiler);
    cc.args(["-O1", "-w", "-pthread", "-o"])
        .arg(&binary)
        .arg("-DMODULE_NAME=\"pysqlite3.dbapi2\"")
        // In the symbol table alone: not for others to link to.
        .arg("-DSQLITE_API=__attribute__((visibility(\"hidden\")))")
        .arg("-I")
        .arg(include)
        .arg("-I")
        .arg(&sqlite)
        .arg(&program)
        .args(sources)
        .arg(sqlite.join("sqlite3.c"))
        .arg(library)
        .args([
            "-Wl,--export-dynamic",
            "-ldl",
            "-lm",
            "-lutil",
            "-lz",
            "-lexpat",
        ]);
    logged(&mut cc, &log, LIMIT).context("cannot build a CPython with SQLite in it")?;
    logged(
        Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(&bare)
            .arg(&binary),
        &log,
        LIMIT,
    )?;
    for (name, binary) in [("python", binary), ("python-stripped", bare)] {
        let path = dir.join(name);
        let text = format!(
            "#!/bin/sh\nPYTHONHOME={} PYTHONPATH={} exec {} \"$@\"\n",
            home.display(),
            module.display(),
            binary.display()
        );
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        output(Command::new(&path).args(["-c", "import pysqlite3"]))?;
    }
    Ok(())
}

/// A CPython that can be linked to: its series, its prefix, its headers and its static library.
fn static_python() -> Result<(&'static str, PathBuf, PathBuf, PathBuf)> {
    for series in SERIES {
        let Some(python) = venv::python(series) else {
            continue;
        };
        let text = output(Command::new(&python).args([
            "-I",
            "-c",
            "import sys, sysconfig as s; print(sys.prefix, s.get_path('include'), \
             s.get_config_var('LIBPL') + '/libpython' + s.get_config_var('LDVERSION') + '.a', sep='\\n')",
        ]))?;
        let mut paths = text.lines().map(PathBuf::from);
        if let (Some(prefix), Some(include), Some(library)) =
            (paths.next(), paths.next(), paths.next())
            && library.exists()
            && include.join("Python.h").exists()
        {
            return Ok((series, prefix, include, library));
        }
    }
    bail!("no CPython here has a static library and headers")
}

/// The folder of SQLite's amalgamation, which Cargo has got for the agent's own store.
fn amalgamation() -> Result<PathBuf> {
    let cargo = match env::var_os("CARGO_HOME") {
        Some(cargo) => PathBuf::from(cargo),
        None => Path::new(&env::var_os("HOME").context("there is no HOME")?).join(".cargo"),
    };
    let registries = fs::read_dir(cargo.join("registry/src")).context("Cargo has no sources")?;
    registries
        .filter_map(|entry| fs::read_dir(entry.ok()?.path()).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("sqlite3")))
        .filter(|path| path.to_string_lossy().contains("/libsqlite3-sys-"))
        .filter(|path| path.join("sqlite3.c").exists())
        .max()
        .context("Cargo's sources have no SQLite")
}
