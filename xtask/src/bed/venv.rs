//! Python interpreters, and virtual environments that are made once a machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{logged, output, say},
    debian, paths,
};

/// What the bed's own service needs, and the servers it can run under.
pub const WEB: &[&str] = &[
    "aiosqlite",
    "fastapi",
    "gunicorn",
    "h11",
    "httptools",
    "httpx",
    "hypercorn",
    "uvicorn",
    "uvloop",
    "websockets",
];

/// HTTP clients beside httpx, and a proxy to call through; with what they need, for CPython 3.11.
pub const CLIENTS: &[&str] = &[
    "aiohappyeyeballs==2.7.1",
    "aiohttp==3.14.5",
    "aiosignal==1.4.0",
    "attrs==26.1.0",
    "frozenlist==1.8.0",
    "multidict==7.2.1",
    "propcache==0.5.4",
    "proxy.py==2.4.10",
    "requests",
    "urllib3",
    "yarl==1.25.1",
];

/// The versions that are installed, direct and indirect, by CPython's version.
const CONSTRAINTS: &[(u32, &str)] = &[
    (8, include_str!("../../assets/python/3.8.txt")),
    (9, include_str!("../../assets/python/3.9.txt")),
    (10, include_str!("../../assets/python/3.10.txt")),
    (11, include_str!("../../assets/python/3.11.txt")),
    (12, include_str!("../../assets/python/3.12.txt")),
    (13, include_str!("../../assets/python/3.13.txt")),
];

/// What fills an environment in a second where pip takes ten.
const UV: &str = "uv==0.13.9";

/// Time to fetch and install; some packages of a new Python are compiled.
const LIMIT: Duration = Duration::from_secs(900);

/// Debian's own interpreter, which is the default: stripped, and what production runs.
const DEBIAN: &str = "/usr/bin/python3";

/// A virtual environment in the cache.
#[derive(Clone, Debug)]
pub struct Venv {
    pub(super) dir: PathBuf,
    pub(super) version: Version,
}

/// An interpreter's version: major, minor, micro.
pub type Version = (u32, u32, u32);

impl Venv {
    /// Gives a virtual environment of `python` with those packages in it, made now if the cache has
    /// none. A package named alone comes in the version that the bed pins for that Python; one that
    /// the bed does not pin should be given as `name==version`.
    ///
    /// # Errors
    /// The interpreter does not run or is too old, or pip cannot install something.
    pub fn ensure(python: &Path, packages: &[&str]) -> Result<Self> {
        let version = version(python)?;
        let constraints = constraints(version)?;
        let (major, minor, micro) = version;
        let mut packages = packages.to_vec();
        packages.sort_unstable();
        let real = fs::canonicalize(python).unwrap_or_else(|_| python.to_owned());
        let key = fnv1a(&format!("{}\n{packages:?}\n{constraints}", real.display()));
        let name = format!("python-{major}.{minor}.{micro}-{key:016x}");
        let venv = Self {
            dir: paths::cache()?.join(&name),
            version,
        };
        if venv.complete() {
            return Ok(venv);
        }
        let _lock = paths::lock(&name)?;
        if venv.complete() {
            return Ok(venv);
        }
        venv.make(python, &packages, constraints)?;
        Ok(venv)
    }

    /// [`Venv::ensure`] with the default interpreter and [`WEB`].
    ///
    /// # Errors
    /// As there.
    pub fn web() -> Result<Self> {
        Self::ensure(&default_python()?, WEB)
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The interpreter's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// A program in it: `python`, `uvicorn`...
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// Where its packages lie (`site-packages`).
    pub fn packages(&self) -> PathBuf {
        let (major, minor, _) = self.version;
        self.dir
            .join(format!("lib/python{major}.{minor}/site-packages"))
    }

    /// Whether it was made to the end and its interpreter is still there.
    fn complete(&self) -> bool {
        self.marker().exists() && version(&self.program("python")).is_ok_and(|v| v == self.version)
    }

    fn marker(&self) -> PathBuf {
        self.dir.join("complete")
    }

    fn make(&self, python: &Path, packages: &[&str], constraints: &str) -> Result<()> {
        let (major, minor, _) = self.version;
        say(format!(
            "making a Python {major}.{minor} environment with {}",
            packages.join(", ")
        ));
        ensure_venv_module(python, self.version)?;
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)
                .with_context(|| format!("cannot clear {}", self.dir.display()))?;
        }
        let mut log = self.dir.clone().into_os_string();
        log.push(".log");
        let log = PathBuf::from(log);
        let mut venv = Command::new(python);
        venv.args(["-m", "venv"]).arg(&self.dir);
        if packages == [UV] {
            // The one that fills the others has what it takes to fill itself.
            logged(&mut venv, &log, LIMIT)?;
            let mut pip = self.pip();
            pip.args(["install", "--quiet", UV]);
            logged(&mut pip, &log, LIMIT).context("cannot install uv from PyPI")?;
        } else {
            logged(venv.arg("--without-pip"), &log, LIMIT)?;
            self.install(packages, constraints, &log)?;
        }
        fs::write(self.marker(), "")
            .with_context(|| format!("cannot write {}", self.marker().display()))
    }

    /// Installs packages from PyPI: with uv, or where that fails with pip, whose own settings may know a way that uv
    /// does not.
    fn install(&self, packages: &[&str], constraints: &str, log: &Path) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        let file = self.dir.join("constraints.txt");
        fs::write(&file, constraints)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let installers = installers()?;
        let mut uv = Command::new(installers.program("uv"));
        uv.args(["pip", "install", "--quiet", "--no-config", "--python"])
            .arg(self.program("python"))
            // Services are started without leave to write it, and would compile all that they import each time.
            .arg("--compile-bytecode")
            .arg("--cache-dir")
            .arg(paths::cache()?.join("uv"))
            .arg("--constraints")
            .arg(&file)
            .args(packages);
        let Err(why) = logged(&mut uv, log, LIMIT) else {
            return Ok(());
        };
        say(format!("{why:#}; trying pip"));
        let mut pip = installers.pip();
        pip.arg("--python")
            .arg(self.program("python"))
            .args(["install", "--quiet", "--prefer-binary", "--constraint"])
            .arg(&file)
            .args(packages);
        logged(&mut pip, log, LIMIT).context("cannot install Python packages from PyPI")
    }

    /// Its pip; only [`installers`] have one.
    pub(super) fn pip(&self) -> Command {
        let mut pip = Command::new(self.program("python"));
        pip.args(["-m", "pip", "--disable-pip-version-check"]);
        pip
    }
}

/// The environment that has pip and uv, which fill the others.
///
/// # Errors
/// It cannot be made.
pub(super) fn installers() -> Result<Venv> {
    Venv::ensure(&default_python()?, &[UV])
}

/// Debian's `/usr/bin/python3`, or where there is none the first `python3` in `PATH`; where there is
/// neither, Debian's is installed.
///
/// # Errors
/// There is neither, and it cannot be installed.
pub fn default_python() -> Result<PathBuf> {
    let debian = Path::new(DEBIAN);
    if debian.exists() {
        return Ok(debian.to_owned());
    }
    if let Some(python) = in_path("python3") {
        return Ok(python);
    }
    say("installing Debian's python3 with apt-get");
    debian::install(&["python3", "python3-venv"]).context("there is no python3")?;
    Ok(debian.to_owned())
}

/// A CPython of that version, like `3.12`: the system's, pyenv's, or one in `PATH`.
pub fn python(version: &str) -> Option<PathBuf> {
    let name = format!("python{version}");
    let system = Path::new("/usr/bin").join(&name);
    if system.exists() {
        return Some(system);
    }
    pyenv(&name).or_else(|| in_path(&name).filter(|path| self::version(path).is_ok()))
}

/// The newest of pyenv's interpreters with that name (`python3.12`).
fn pyenv(name: &str) -> Option<PathBuf> {
    let root = match env::var_os("PYENV_ROOT") {
        Some(root) => PathBuf::from(root),
        None => Path::new(&env::var_os("HOME")?).join(".pyenv"),
    };
    fs::read_dir(root.join("versions"))
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path().join("bin").join(name);
            Some((version(&path).ok()?, path))
        })
        .max()
        .map(|(_, path)| path)
}

fn in_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.exists())
}

/// Asks an interpreter for its version.
///
/// # Errors
/// It does not run.
pub fn version(python: &Path) -> Result<Version> {
    let text = output(Command::new(python).args([
        "-I",
        "-c",
        "import sys; print(*sys.version_info[:3])",
    ]))?;
    let mut parts = text.split_whitespace().map(str::parse);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor)), Some(Ok(micro))) => Ok((major, minor, micro)),
        _ => bail!("{} gives no version: {text:?}", python.display()),
    }
}

/// The pins for a version; a Python newer than all of them gets those of the newest.
pub(super) fn constraints((major, minor, _): Version) -> Result<&'static str> {
    CONSTRAINTS
        .iter()
        .rfind(|(pinned, _)| major == 3 && *pinned <= minor)
        .map(|(_, text)| *text)
        .with_context(|| format!("Python {major}.{minor} is older than what the test bed supports"))
}

/// Debian splits `venv` off into a package of its own.
fn ensure_venv_module(python: &Path, (major, minor, _): Version) -> Result<()> {
    let mut probe = Command::new(python);
    if output(probe.args(["-I", "-c", "import ensurepip, venv"])).is_ok() {
        return Ok(());
    }
    let package = if python == Path::new(DEBIAN) {
        "python3-venv".to_owned()
    } else {
        format!("python{major}.{minor}-venv")
    };
    if !python.starts_with("/usr/bin") {
        bail!("{} has no venv module", python.display());
    }
    say(format!("installing Debian's {package} with apt-get"));
    debian::install(&[&package])
}

/// FNV-1a, 64 bits: a key that stays the same from one build of this program to the next.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    /// Each supported Python gets its own pins, newer ones the newest, and older ones a refusal.
    #[test]
    fn pins_by_version() {
        assert!(constraints((3, 8, 18)).unwrap().contains("CPython 3.8"));
        assert!(constraints((3, 15, 0)).unwrap().contains("CPython 3.13"));
        assert!(constraints((3, 7, 0)).is_err());
        assert!(constraints((2, 7, 18)).is_err());
    }

    /// Everything that the bed's service needs is pinned for every Python.
    #[test]
    fn all_is_pinned() {
        for (minor, text) in CONSTRAINTS {
            let text = text.to_lowercase();
            for package in WEB {
                assert!(
                    text.contains(&format!("\n{package}==")),
                    "{package} is not pinned for 3.{minor}"
                );
            }
        }
    }

    /// The key's value is fixed: environments in the cache are found again by later builds.
    #[test]
    fn key_is_stable() {
        assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("a"), 0xaf63_dc4c_8601_ec8c);
    }
}
