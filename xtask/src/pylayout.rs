//! `cargo xtask pylayout`: writes, or checks, the table of CPython's struct layouts.
//!
//! The table's origin is CPython itself: `assets/pylayout.c`, compiled against the headers of every
//! CPython at hand, prints where each field is.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    command::{output, say},
    paths,
};

/// The program that prints a layout.
const SOURCE: &str = "xtask/assets/pylayout.c";

/// The table it makes.
const TABLE: &str = "decnet-trace/src/python/layout_table.rs";

/// The minor versions of CPython 3 in the table.
const MINORS: std::ops::RangeInclusive<u32> = 8..=15;

/// The layout that one CPython's headers tell.
struct Measured {
    /// The headers' folder.
    headers: PathBuf,
    /// The full version.
    release: String,
    /// The minor version.
    minor: u32,
    /// The fields, in the order printed.
    fields: Vec<(String, u64)>,
}

/// Writes the table from the headers of all CPythons at hand, or, with `check`, compares.
///
/// # Errors
/// No headers of a version in the table are at hand (when writing), two CPythons of one minor
/// version disagree, or (with `check`) one of them disagrees with the table.
pub fn run(check: bool) -> Result<()> {
    let mut layouts: BTreeMap<u32, Measured> = BTreeMap::new();
    let mut disagreements = 0;
    for headers in header_folders()? {
        let measured = measure(&headers)?;
        say(format!(
            "CPython {} in {}",
            measured.release,
            headers.display()
        ));
        match layouts.get(&measured.minor) {
            Some(first) => disagreements += compare(first, &measured),
            None => {
                layouts.insert(measured.minor, measured);
            }
        }
    }
    ensure!(
        disagreements == 0,
        "{disagreements} fields differ inside a minor version"
    );
    let path = paths::workspace().join(TABLE);
    let table = render(&layouts)?;
    if check {
        let known = fs::read_to_string(&path).with_context(|| format!("cannot read {TABLE}"))?;
        for minor in MINORS.filter(|minor| !layouts.contains_key(minor)) {
            say(format!("SKIPPED: 3.{minor}: no headers at hand"));
        }
        for (minor, measured) in &layouts {
            let text = version_text(measured)?;
            ensure!(
                known.contains(&text),
                "{TABLE} differs from CPython {}'s headers in {}: run cargo xtask pylayout",
                measured.release,
                measured.headers.display()
            );
            say(format!("3.{minor}: as its headers say"));
        }
        return Ok(());
    }
    for minor in MINORS {
        ensure!(
            layouts.contains_key(&minor),
            "no headers of CPython 3.{minor} at hand: the table would lose it"
        );
    }
    fs::write(&path, table).with_context(|| format!("cannot write {TABLE}"))
}

/// The folders of headers at hand: pyenv's, the system's, and those of the Debian tree in the cache.
fn header_folders() -> Result<Vec<PathBuf>> {
    let mut roots = Vec::new();
    let pyenv = env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pyenv")));
    if let Some(Ok(versions)) = pyenv.map(|root| fs::read_dir(root.join("versions"))) {
        roots.extend(versions.flatten().map(|entry| entry.path().join("include")));
    }
    roots.push(PathBuf::from("/usr/include"));
    roots.push(debian_tree()?.join("usr/include"));
    let mut folders = Vec::new();
    for root in roots {
        let Ok(entries) = fs::read_dir(&root) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let minor = name.to_str().and_then(|name| name.strip_prefix("python3."));
            let supported = minor
                .and_then(|minor| minor.parse().ok())
                .is_some_and(|minor| MINORS.contains(&minor));
            if supported && entry.path().join("internal/pycore_pystate.h").exists() {
                folders.push(entry.path());
            }
        }
    }
    folders.sort();
    Ok(folders)
}

/// The tree of Debian's unstable release in the cache, which has the newest CPythons.
///
/// # Errors
/// There is no cache folder.
pub fn debian_tree() -> Result<PathBuf> {
    Ok(paths::cache()?.join("sid-python"))
}

/// Makes [`debian_tree`] with debootstrap (as root), unless it is there.
///
/// # Errors
/// debootstrap is not installed, or fails.
pub fn make_debian_tree() -> Result<PathBuf> {
    let tree = debian_tree()?;
    let _lock = paths::lock("sid-python")?;
    if tree.join("usr/bin/python3.15").exists() {
        return Ok(tree);
    }
    say("unpacking Debian unstable's CPython 3.14 and 3.15 (some 700 MB)");
    let making = tree.with_extension("making");
    if making.exists() {
        fs::remove_dir_all(&making)?;
    }
    output(
        Command::new("debootstrap")
            .arg("--variant=minbase")
            .arg(
                "--include=python3.14-minimal,python3.15-minimal,libpython3.14-stdlib,\
                 libpython3.15-stdlib,libpython3.14-dev,libpython3.15-dev,python3.14-dbg,pypy3",
            )
            .arg("sid")
            .arg(&making),
    )
    .context("cannot unpack Debian unstable (needs root and the package debootstrap)")?;
    fs::rename(&making, &tree)?;
    Ok(tree)
}

/// Compiles the program against these headers, and runs it.
fn measure(headers: &Path) -> Result<Measured> {
    let program = paths::target().join("pylayout");
    fs::create_dir_all(paths::target())?;
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    output(
        Command::new(compiler)
            .args(["-std=gnu11", "-w", "-O0", "-o"])
            .arg(&program)
            .arg("-I")
            .arg(headers)
            .arg("-I")
            .arg(headers.join("internal"))
            // Debian's pyconfig.h refers to x86_64-linux-gnu/python3.x/pyconfig.h beside it.
            .arg("-idirafter")
            .arg(headers.parent().unwrap_or(headers))
            .arg(paths::workspace().join(SOURCE)),
    )
    .with_context(|| format!("cannot compile {SOURCE} with {}", headers.display()))?;
    parse(headers, &output(&mut Command::new(program))?)
}

/// Reads what the program prints.
fn parse(headers: &Path, text: &str) -> Result<Measured> {
    let mut lines = text.lines();
    let release = lines
        .next()
        .and_then(|line| line.strip_prefix("# CPython "))
        .context("pylayout does not name its version")?
        .to_owned();
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line
            .split_once(' ')
            .with_context(|| format!("pylayout prints {line:?}"))?;
        fields.push((
            name.to_owned(),
            value
                .parse()
                .with_context(|| format!("pylayout prints {line:?}"))?,
        ));
    }
    let version = fields
        .iter()
        .find(|(name, _)| name == "version")
        .context("pylayout prints no version")?
        .1;
    let minor = u32::try_from(version & 0xff)?;
    Ok(Measured {
        headers: headers.to_owned(),
        release,
        minor,
        fields,
    })
}

/// Says which fields of two CPythons of one minor version differ, and returns how many do.
fn compare(first: &Measured, second: &Measured) -> usize {
    let mut differences = 0;
    for (name, value) in &first.fields {
        let other = second
            .fields
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| *value);
        if other != Some(*value) {
            differences += 1;
            say(format!(
                "{name}: {value} in {}, {} in {}",
                first.release,
                other.map_or_else(|| "absent".to_owned(), |value| value.to_string()),
                second.release
            ));
        }
    }
    differences
}

/// The whole table, as rustfmt would have it.
fn render(layouts: &BTreeMap<u32, Measured>) -> Result<String> {
    let mut text = String::from(
        "//! Where each CPython keeps its fields. Generated: do not edit; run `cargo xtask pylayout`, which\n\
         //! compiles xtask/assets/pylayout.c against each version's own headers.\n\n\
         use super::layout::Layout;\n",
    );
    for measured in layouts.values() {
        text.push_str(&version_text(measured)?);
    }
    Ok(text)
}

/// The part of the table that one version makes.
fn version_text(measured: &Measured) -> Result<String> {
    let mut text = String::new();
    let minor = measured.minor;
    writeln!(
        text,
        "\n/// From the headers of CPython {}.",
        series(&measured.release)?
    )?;
    writeln!(
        text,
        "pub(super) const CPYTHON_3_{minor}: Layout = Layout {{"
    )?;
    for (name, value) in measured
        .fields
        .iter()
        .filter(|(name, _)| !name.starts_with("own."))
    {
        match name.as_str() {
            "version" => writeln!(text, "    {name}: {value:#06x},")?,
            "thread_gil_mask" => writeln!(text, "    {name}: {value:#x},")?,
            _ => writeln!(text, "    {name}: {value},")?,
        }
    }
    writeln!(text, "    ..Layout::ABSENT\n}};")?;
    if measured
        .fields
        .iter()
        .any(|(name, _)| name.starts_with("own."))
    {
        writeln!(
            text,
            "\n/// Where a CPython 3.{minor}'s own `_Py_DebugOffsets` says the same."
        )?;
        writeln!(text, "pub(super) const OWN_3_{minor}: &[(&str, u32)] = &[")?;
        for (name, value) in &measured.fields {
            if let Some(name) = name.strip_prefix("own.") {
                writeln!(text, "    (\"{name}\", {value}),")?;
            }
        }
        writeln!(text, "];")?;
    }
    Ok(text)
}

/// `3.14` of `3.14.10`: the table must not change with the patch release at hand.
fn series(release: &str) -> Result<&str> {
    match release.match_indices('.').nth(1) {
        Some((end, _)) => Ok(&release[..end]),
        None => bail!("CPython calls itself {release:?}"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn sample(release: &str, size: u64) -> Measured {
        let text =
            format!("# CPython {release}\nversion 781\nthread_size {size}\nown.thread_size 144\n");
        parse(Path::new("/headers"), &text).unwrap()
    }

    /// What the program prints becomes the table's text, with no trace of the patch release.
    #[test]
    fn renders() {
        let text = version_text(&sample("3.13.5", 304)).unwrap();
        assert!(text.contains(
            "const CPYTHON_3_13: Layout = Layout {\n    version: 0x030d,\n    thread_size: 304,\n"
        ));
        assert!(text.contains("(\"thread_size\", 144),"));
        assert_eq!(text, version_text(&sample("3.13.0", 304)).unwrap());
    }

    /// Two patch releases that differ are counted.
    #[test]
    fn compares() {
        assert_eq!(compare(&sample("3.13.0", 304), &sample("3.13.5", 304)), 0);
        assert_eq!(compare(&sample("3.13.0", 304), &sample("3.13.5", 312)), 1);
    }

    /// Output that is not the program's is refused.
    #[test]
    fn refuses_garbage() {
        for text in [
            "",
            "version 781",
            "# CPython 3.13.0\nversion",
            "# CPython 3.13.0\nthread_size 3",
        ] {
            assert!(parse(Path::new("/headers"), text).is_err(), "{text:?}");
        }
    }
}
