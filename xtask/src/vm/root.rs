//! The file system of a machine: the agent, a CPython, an environment and a service, in one archive.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bed::{process::Folder, service, venv::Venv},
    command::{output, say},
    paths,
};

/// Parts of the standard library that no service needs.
const UNUSED: &[&str] = &[
    "test",
    "idlelib",
    "tkinter",
    "lib2to3",
    "ensurepip",
    "pydoc_data",
    "__pycache__",
];

/// Packages of an environment that serve to install others.
const INSTALLERS: &[&str] = &["pip", "setuptools", "pkg_resources"];

/// Packs what a machine needs into the archive `to` (cpio's "newc", which the kernel unpacks).
///
/// # Errors
/// Something is missing, or cannot be copied.
pub(super) fn make(agent: &Path, venv: &Venv, to: &Path) -> Result<()> {
    say("packing the machines' file system");
    let folder = Folder::new()?;
    let root = folder.path();
    for dir in [
        "proc", "sys", "dev", "tmp", "run", "etc", "root", "var/lib", "usr/bin",
    ] {
        fs::create_dir_all(root.join(dir))?;
    }
    // As merged by Debian: /bin and /lib are in /usr.
    for name in ["bin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    let python =
        fs::canonicalize(venv.program("python")).context("the environment has no python")?;
    let (major, minor, _) = venv.version();
    let mut wanted = BTreeSet::from([agent.to_owned(), python.clone()]);
    install(agent, &root.join("usr/bin/decnet-trace"))?;
    copy(&python, root)?;
    if python != Path::new("/usr/bin/python3") {
        symlink(&python, root.join("usr/bin/python3"))?;
    }
    let library = library(&python)?;
    copy_tree(&library, root, UNUSED, &mut wanted)?;
    copy_tree(venv.dir(), root, INSTALLERS, &mut wanted)?;
    for shared in shared_libraries(&wanted)? {
        copy(&shared, root)?;
    }
    fs::write(root.join("venv"), venv.dir().display().to_string())?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    fs::copy(service::app(), root.join("app.py"))?;
    let init = root.join("init");
    fs::copy(paths::workspace().join("xtask/assets/vm/init.py"), &init)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    if !root
        .join(format!("usr/lib/python{major}.{minor}/os.py"))
        .exists()
        && library.starts_with("/usr")
    {
        bail!(
            "the standard library of {} is not where it should be",
            python.display()
        );
    }
    pack(root, to)
}

/// Where an interpreter's standard library lies.
fn library(python: &Path) -> Result<PathBuf> {
    let mut ask = Command::new(python);
    let path = output(ask.args(["-I", "-c", "import os; print(os.path.dirname(os.__file__))"]))?;
    Ok(PathBuf::from(path.trim()))
}

/// Copies a file to where it lies, under another root.
fn copy(from: &Path, root: &Path) -> Result<()> {
    install(from, &within(from, root)?)
}

fn install(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Where an absolute path lies under another root.
fn within(path: &Path, root: &Path) -> Result<PathBuf> {
    let relative = path
        .strip_prefix("/")
        .with_context(|| format!("{} is not absolute", path.display()))?;
    Ok(root.join(relative))
}

/// Copies a folder to where it lies, under another root, and notes its shared objects.
fn copy_tree(
    from: &Path,
    root: &Path,
    without: &[&str],
    objects: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    fs::create_dir_all(within(from, root)?)?;
    for entry in entries {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if without.iter().any(|unused| name == *unused)
            || name.to_string_lossy().starts_with("config-")
        {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&path, root, without, objects)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&path)?, within(&path, root)?)?;
        } else {
            copy(&path, root)?;
            if name.to_string_lossy().contains(".so") {
                objects.insert(path);
            }
        }
    }
    Ok(())
}

/// The shared libraries that programs and libraries need.
fn shared_libraries(of: &BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for path in of {
        // It fails for what is linked statically.
        let listed = output(Command::new("ldd").arg(path)).unwrap_or_default();
        found.extend(parse_ldd(&listed));
    }
    if found.is_empty() {
        bail!("ldd finds no libraries");
    }
    Ok(found)
}

/// The paths in ldd's output: `name => /path (address)`, or `/path (address)`.
fn parse_ldd(listed: &str) -> impl Iterator<Item = PathBuf> {
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
}

fn pack(root: &Path, to: &Path) -> Result<()> {
    let mut names = String::new();
    list(root, Path::new(""), &mut names)?;
    let archive =
        fs::File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut cpio = Command::new("/usr/bin/cpio")
        .args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(archive)
        .spawn()
        .context("cannot start cpio")?;
    if let Some(mut stdin) = cpio.stdin.take() {
        stdin
            .write_all(names.as_bytes())
            .context("cpio ended early")?;
    }
    if !cpio.wait()?.success() {
        bail!("cpio cannot pack {}", root.display());
    }
    Ok(())
}

/// All names under a folder, each folder before what is in it.
fn list(root: &Path, at: &Path, names: &mut String) -> Result<()> {
    for entry in fs::read_dir(root.join(at))? {
        let entry = entry?;
        let name = at.join(entry.file_name());
        names.push_str(&name.to_string_lossy());
        names.push('\n');
        if entry.file_type()?.is_dir() {
            list(root, &name, names)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found, and the loader; not what the kernel maps by itself, nor what is missing.
    #[test]
    fn libraries() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                      \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f11)\n\
                      \tlibgone.so => not found\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f12)\n";
        let found: Vec<_> = parse_ldd(listed).collect();
        assert_eq!(
            found,
            [
                "/lib/x86_64-linux-gnu/libm.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(PathBuf::from)
        );
    }
}
