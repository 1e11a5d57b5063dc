//! Where values come from: defaults, the file, the environment, flags; the later ones win.

use std::{
    collections::BTreeMap,
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use toml::{Table, Value};

use super::{Settings, section::Section};
use crate::error::{Error, Result};

/// Where the file is, unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/decnet-trace/config.toml";

/// The variable that names another file.
const PATH_VARIABLE: &str = "DECNET_TRACE_CONFIG";

/// Variables of others that stand for keys of this configuration; the first that is set counts, and a
/// `DECNET_TRACE_…` comes before all of them.
const OTHERS: &[(&str, &[&str])] = &[
    (
        "otlp.endpoint",
        &["OTEL_EXPORTER_OTLP_ENDPOINT", "DECNET_OTEL_ENDPOINT"],
    ),
    ("otlp.metrics_every", &["OTEL_METRIC_EXPORT_INTERVAL"]),
    ("sampling.sampler", &["OTEL_TRACES_SAMPLER"]),
    ("sampling.sampler_arg", &["OTEL_TRACES_SAMPLER_ARG"]),
];

/// Keys of `[otlp]` that OpenTelemetry has variables for, of all signals and of each.
const OF_OTLP: &[&str] = &[
    "endpoint",
    "protocol",
    "headers",
    "timeout",
    "compression",
    "certificate",
    "client_certificate",
    "client_key",
];

/// The variables of others that stand for a key.
fn others(section: &str, key: &str) -> Vec<String> {
    let path = format!("{section}.{key}");
    if let Some((_, names)) = OTHERS.iter().find(|(known, _)| *known == path) {
        return names.iter().map(|name| (*name).to_owned()).collect();
    }
    // <https://opentelemetry.io/docs/specs/otel/protocol/exporter/#configuration-options>
    match section {
        "otlp" | "otlp_traces" | "otlp_metrics" | "otlp_logs" if OF_OTLP.contains(&key) => {
            vec![format!("OTEL_EXPORTER_{section}_{key}").to_uppercase()]
        }
        _ => Vec::new(),
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The file.
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A flag that was given.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The key that it stands for: `otlp.endpoint`.
    pub key: &'static str,
    /// Itself: `--otlp-endpoint`.
    pub flag: &'static str,
    /// Its value.
    pub value: Value,
}

/// Reads the configuration, and reads it again.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    /// The file that `--config` names.
    pub file: Option<PathBuf>,
    /// The flags that were given.
    pub flags: Vec<Flag>,
}

/// A configuration that was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it says.
    pub settings: Settings,
    /// What is not right, but no reason to refuse it.
    pub warnings: Vec<String>,
    /// Where each key that is not a default comes from.
    pub(super) origins: BTreeMap<String, Origin>,
}

impl Loader {
    /// Reads the file, the environment and the flags.
    ///
    /// # Errors
    ///
    /// When a file that was named cannot be read, or a key or a value is wrong: with the line and the
    /// column, or the variable.
    pub fn load(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Loaded> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mut layers = Layers::default();
        let mut warnings = Vec::new();
        let named = self
            .file
            .clone()
            .or_else(|| variable(PATH_VARIABLE).map(PathBuf::from));
        let path = named.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
        match fs::read_to_string(path) {
            Ok(text) => {
                layers.file(path, &text)?;
                warnings.extend(holds_secrets(path, &layers.table));
            }
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Error::usage(format_args!(
                    "cannot read the configuration {}: {error}; give --config a file that can be read",
                    path.display()
                )));
            }
        }
        let sections = Settings::sections();
        for section in &sections {
            layers.variables(section, &variable)?;
        }
        for flag in &self.flags {
            let origin = Origin::Flag(flag.flag);
            layers.set(flag.key, flag.value.clone(), origin)?;
        }
        let settings = Settings::deserialize(layers.table).map_err(Error::usage)?;
        Ok(Loaded {
            settings,
            warnings,
            origins: layers.origins,
        })
    }
}

#[derive(Debug, Default)]
struct Layers {
    table: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    fn file(&mut self, path: &Path, text: &str) -> Result<()> {
        let wrong = |error: toml::de::Error| {
            let (line, column) = place(text, error.span().map_or(0, |span| span.start));
            Error::usage(format_args!(
                "{}:{line}:{column}: {}",
                path.display(),
                error.message()
            ))
        };
        toml::from_str::<Settings>(text).map_err(wrong)?;
        self.table = toml::from_str(text).map_err(wrong)?;
        for (section, keys) in &self.table {
            for key in keys.as_table().into_iter().flat_map(Table::keys) {
                let origin = Origin::File(path.to_owned());
                self.origins.insert(format!("{section}.{key}"), origin);
            }
        }
        Ok(())
    }

    fn variables(
        &mut self,
        section: &Section,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        for key in section.keys {
            let path = format!("{}.{}", section.name, key.name);
            let own = variable_of(section.name, key.name);
            let found = std::iter::once(own)
                .chain(others(section.name, key.name))
                .find_map(|name| Some((variable(&name)?, name)));
            let Some((text, name)) = found else { continue };
            // OpenTelemetry has milliseconds.
            let text = match (key.name, name.starts_with("OTEL_")) {
                ("timeout" | "metrics_every", true) => format!("{text}ms"),
                _ => text,
            };
            let like = section.defaults.get(key.name);
            let value = parse(&text, like)
                .map_err(|why| Error::usage(format_args!("{name} is {text:?}: {why}")))?;
            self.set(&path, value, Origin::Variable(name))?;
        }
        Ok(())
    }

    /// Takes a value, checked.
    fn set(&mut self, path: &str, value: Value, origin: Origin) -> Result<()> {
        let Some((section, key)) = path.split_once('.') else {
            return Ok(());
        };
        let alone = Table::from_iter([(
            section.to_owned(),
            Value::Table(Table::from_iter([(key.to_owned(), value.clone())])),
        )]);
        if let Err(error) = Settings::deserialize(alone) {
            return Err(Error::usage(format_args!("{origin}: {}", error.message())));
        }
        let section = self
            .table
            .entry(section)
            .or_insert_with(|| Value::Table(Table::new()));
        if let Some(section) = section.as_table_mut() {
            section.insert(key.to_owned(), value);
        }
        self.origins.insert(path.to_owned(), origin);
        Ok(())
    }
}

/// The variable that stands for a key.
pub(super) fn variable_of(section: &str, key: &str) -> String {
    format!("DECNET_TRACE_{section}_{key}").to_uppercase()
}

/// A variable's value, of the kind that the key's default is of. Lists are parted by commas, tables are
/// `name=value,name=value`; either may be written as in the file.
fn parse(text: &str, like: Option<&Value>) -> Result<Value, String> {
    let as_toml = || {
        let line = format!("value = {text}");
        toml::from_str::<Table>(&line)
            .ok()
            .and_then(|mut table| table.remove("value"))
    };
    let items = || {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
    };
    Ok(match like {
        Some(Value::Integer(_)) => Value::Integer(
            text.trim()
                .parse()
                .map_err(|_| "it should be a whole number".to_owned())?,
        ),
        Some(Value::Float(_)) => Value::Float(
            text.trim()
                .parse()
                .map_err(|_| "it should be a number".to_owned())?,
        ),
        Some(Value::Boolean(_)) => match text.trim() {
            "true" | "1" | "yes" | "on" => Value::Boolean(true),
            "false" | "0" | "no" | "off" => Value::Boolean(false),
            _ => return Err("it should be true or false".to_owned()),
        },
        Some(Value::Array(_)) => match as_toml() {
            Some(list @ Value::Array(_)) => list,
            _ => Value::Array(
                items()
                    .map(|item| match item.parse() {
                        Ok(number) => Value::Integer(number),
                        Err(_) => Value::String(item.to_owned()),
                    })
                    .collect(),
            ),
        },
        Some(Value::Table(_)) => match as_toml() {
            Some(table @ Value::Table(_)) => table,
            _ => {
                let pairs: Option<Table> = items()
                    .map(|item| {
                        let (name, value) = item.split_once('=')?;
                        let value = Value::String(value.trim().to_owned());
                        Some((name.trim().to_owned(), value))
                    })
                    .collect();
                Value::Table(pairs.ok_or("it should be name=value,name=value")?)
            }
        },
        _ => Value::String(text.to_owned()),
    })
}

/// The line and the column, from 1, of a place in a text.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (line, before[start..].chars().count() + 1)
}

/// A warning, where a file with secrets in it can be read by everyone.
fn holds_secrets(path: &Path, table: &Table) -> Option<String> {
    let has_headers = ["otlp", "otlp_traces", "otlp_metrics", "otlp_logs"]
        .iter()
        .filter_map(|section| table.get(*section)?.get("headers")?.as_str())
        .any(|headers| !headers.is_empty());
    has_headers.then(|| world_readable(path)).flatten()
}

/// A warning, where everyone can read a file that holds a secret.
pub(super) fn world_readable(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.mode();
    (mode & 0o004 != 0).then(|| {
        format!(
            "everyone can read {}, which holds a secret; chmod 600 it",
            path.display()
        )
    })
}
