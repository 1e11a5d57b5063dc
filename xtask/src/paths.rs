//! Where things lie: the workspace, and the cache that outlives it.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The root of the workspace that this binary was built from.
pub fn workspace() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The workspace's target directory, `CARGO_TARGET_DIR` honoured.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// The folder for what is made once a machine: `$XDG_CACHE_HOME/decnet-trace`, by default
/// `~/.cache/decnet-trace`. It is created where it is missing.
///
/// # Errors
/// Neither variable is set, or the folder cannot be created.
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = env::var_os("HOME").filter(|dir| !dir.is_empty());
            PathBuf::from(home.context("no cache folder: set XDG_CACHE_HOME or HOME")?)
                .join(".cache")
        }
    };
    let dir = base.join("decnet-trace");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// Takes the cache's lock of that name, waiting for whoever holds it; it is held until the file is
/// dropped. Two builds that start at once then make a cached thing once, and never half of it.
///
/// # Errors
/// The lock file cannot be made or locked.
pub fn lock(name: &str) -> Result<File> {
    let path = cache()?.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
