//! The configuration as text: the example file, and what is in effect.

use std::fmt::Write as _;

use toml::{Table, Value};

use super::{
    Settings,
    layers::{Loaded, variable_of},
};

/// What stands in the place of secrets.
const HIDDEN: &str = "(hidden)";

/// Keys whose values are secrets.
const SECRETS: &[&str] = &[
    "otlp.headers",
    "otlp_traces.headers",
    "otlp_metrics.headers",
    "otlp_logs.headers",
];

/// The example file: every key with its documentation and its default, commented out.
pub fn example() -> String {
    let mut out = String::from(
        "# decnet-trace's configuration: /etc/decnet-trace/config.toml, or the file that --config names.\n\
         # Every key is here, with its default. A variable of the environment, named beside each key,\n\
         # comes before the file, and a flag before both. `decnet-trace config check` says what is\n\
         # wrong with a file; `decnet-trace config show --origin` shows what is in effect.\n\
         # SIGHUP makes a running agent read it again: [targets], [sampling], [redaction], [routes] and\n\
         # the rate of [profile] change at once, the rest at the next start.\n",
    );
    for section in Settings::sections() {
        out.push('\n');
        for line in section.about {
            let _ = writeln!(out, "#{line}");
        }
        let _ = writeln!(out, "[{}]", section.name);
        for key in section.keys {
            out.push('\n');
            for line in key.doc {
                let _ = writeln!(out, "#{line}");
            }
            let _ = writeln!(out, "# {}", variable_of(section.name, key.name));
            if let Some(default) = section.defaults.get(key.name) {
                let _ = writeln!(out, "#{} = {}", key.name, inline(default));
            }
        }
    }
    out
}

impl Loaded {
    /// What is in effect, as a file; `origin` adds where each value comes from. Secrets are hidden.
    pub fn show(&self, origin: bool) -> String {
        let all = Table::try_from(&self.settings).unwrap_or_default();
        let mut out = String::new();
        for section in Settings::sections() {
            if !out.is_empty() {
                out.push('\n');
            }
            let _ = writeln!(out, "[{}]", section.name);
            let values = all.get(section.name).and_then(Value::as_table);
            for key in section.keys {
                let path = format!("{}.{}", section.name, key.name);
                let value = values.and_then(|values| values.get(key.name));
                let is_secret = SECRETS.contains(&path.as_str())
                    && value.and_then(Value::as_str).is_some_and(|v| !v.is_empty());
                let shown = match value {
                    _ if is_secret => format!("\"{HIDDEN}\""),
                    Some(value) => inline(value),
                    None => continue,
                };
                let _ = write!(out, "{} = {shown}", key.name);
                if origin {
                    match self.origins.get(&path) {
                        Some(from) => {
                            let _ = write!(out, "  # {from}");
                        }
                        None => out.push_str("  # default"),
                    }
                }
                out.push('\n');
            }
        }
        out
    }
}

/// A value on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) if table.is_empty() => "{}".to_owned(),
        Value::Table(table) => {
            let pairs: Vec<_> = table
                .iter()
                .map(|(key, value)| {
                    let key = Value::String(key.clone());
                    format!("{key} = {}", inline(value))
                })
                .collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        value => value.to_string(),
    }
}
