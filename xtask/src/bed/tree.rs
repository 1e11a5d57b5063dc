//! Environments of the CPythons in Debian's unstable release, which run in that release's own tree.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::venv::{self, Venv};
use crate::{
    command::{logged, say},
    paths, pylayout,
};

/// Time for pip to fetch and unpack.
const LIMIT: Duration = Duration::from_secs(300);

/// Where environments lie in the tree.
const FOLDER: &str = "opt/decnet-trace";

/// An environment of that CPython (like `3.14`) of the [tree](pylayout::debian_tree), with these packages, which
/// are taken as wheels. Its `python` and `uvicorn` change into the tree; the folder that follows `--app-dir`
/// is to be seen there too. Takes root.
///
/// # Errors
/// There is no such tree or CPython in it, or a package has no wheel for it.
pub fn ensure(series: &str, packages: &[&str]) -> Result<Venv> {
    let tree = pylayout::debian_tree()?;
    let program = Path::new("/usr/bin").join(format!("python{series}"));
    if !tree.join(program.strip_prefix("/")?).exists() {
        bail!(
            "there is no CPython {series} in {} (cargo xtask pylayout --debootstrap makes it)",
            tree.display()
        );
    }
    let mut packages = packages.to_vec();
    packages.sort_unstable();
    let dir = tree.join(FOLDER).join(series);
    let launcher = write_launchers(&tree, &dir, &program)?;
    let environment = Venv {
        dir: dir.clone(),
        version: venv::version(&launcher)?,
    };
    let wanted = packages.join("\n");
    let marker = dir.join("complete");
    let _lock = paths::lock(&format!("sid-python-{series}"))?;
    if fs::read_to_string(&marker).is_ok_and(|found| found == wanted) {
        return Ok(environment);
    }
    say(format!(
        "making an environment of Debian unstable's Python {series}"
    ));
    let pins = dir.join("constraints.txt");
    fs::write(&pins, venv::constraints(environment.version)?)
        .with_context(|| format!("cannot write {}", pins.display()))?;
    let abi = format!("cp{}", series.replace('.', ""));
    let mut pip = venv::installers()?.pip();
    pip.args(["install", "--quiet", "--upgrade", "--target"])
        .arg(dir.join("packages"))
        .args(["--only-binary", ":all:", "--python-version", series])
        .args(["--implementation", "cp", "--abi", &abi])
        .args(["--abi", "abi3", "--abi", "none"])
        .args(["--platform", "manylinux_2_28_x86_64"])
        .args(["--platform", "manylinux2014_x86_64"])
        .arg("--constraint")
        .arg(&pins)
        .args(&packages);
    logged(&mut pip, &dir.join("log"), LIMIT)
        .context("cannot install Python packages from PyPI")?;
    fs::write(&marker, wanted).with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(environment)
}

/// Writes what starts `python` and `uvicorn` in the tree; the former.
fn write_launchers(tree: &Path, dir: &Path, program: &Path) -> Result<PathBuf> {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let packages = Path::new("/")
        .join(dir.strip_prefix(tree)?)
        .join("packages");
    let (tree, packages) = (tree.display(), packages.display());
    let program = program.display();
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = bin.join(name);
        // Replaced whole: one that runs is not written to.
        let new = bin.join(format!("{name}.{}", std::process::id()));
        fs::write(&new, text).with_context(|| format!("cannot write {}", new.display()))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
        fs::rename(&new, &path)?;
        Ok(path)
    };
    write(
        "uvicorn",
        format!(
            r#"#!/bin/sh
# Sees the folder of the application in a mount namespace of its own, as in a container.
if [ "$1" = --seen ]; then
    shift
else
    exec unshare --mount "$0" --seen "$@"
fi
last=
for argument; do
    if [ "$last" = --app-dir ]; then
        mkdir -p "{tree}$argument" && mount --bind "$argument" "{tree}$argument" || exit
    fi
    last=$argument
done
# The tree has no such files.
unset SSL_CERT_FILE SSL_CERT_DIR
PYTHONPATH={packages} exec chroot "{tree}" {program} -m uvicorn "$@"
"#
        ),
    )?;
    write(
        "python",
        format!("#!/bin/sh\nPYTHONPATH={packages} exec chroot \"{tree}\" {program} \"$@\"\n"),
    )
}
