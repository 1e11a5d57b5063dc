//! What `run` keeps on this machine: the flags that stand for the keys of `[store]`.

use clap::Args;
use toml::Value;

use crate::config::Flag;

/// What is stored, and for how long.
#[derive(Args, Debug)]
pub(super) struct StoreArgs {
    /// Keep requests and samples in this folder, for `decnet-trace requests`; off keeps nothing
    /// [default: /var/lib/decnet-trace].
    #[arg(long, value_name = "DIR|off", help_heading = "Store")]
    store: Option<String>,

    /// Delete what is older: 90m, 7days [default: 24h].
    #[arg(long, value_name = "TIME", help_heading = "Store")]
    store_max_age: Option<String>,

    /// Let its files grow to this size, as 2GB; the oldest is deleted then [default: 512MiB].
    #[arg(long, value_name = "SIZE", help_heading = "Store")]
    store_max_size: Option<String>,
}

impl StoreArgs {
    /// The flags that were given.
    pub(super) fn flags(&self) -> impl Iterator<Item = Flag> {
        [
            ("store.dir", "--store", &self.store),
            ("store.max_age", "--store-max-age", &self.store_max_age),
            ("store.max_size", "--store-max-size", &self.store_max_size),
        ]
        .into_iter()
        .filter_map(|(key, flag, text)| {
            let value = Value::String(text.clone()?);
            Some(Flag { key, flag, value })
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::{config::Loader, error::Exit, store::StoreConfig};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: StoreArgs,
    }

    /// What a command line and an environment say.
    fn parse(line: &str, variables: &[(&str, &str)]) -> crate::error::Result<Option<StoreConfig>> {
        let words = ["run"].into_iter().chain(line.split_whitespace());
        let loader = Loader {
            file: Some("/dev/null".into()),
            flags: Line::try_parse_from(words).unwrap().args.flags().collect(),
        };
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        loader.load(variable)?.settings.store()
    }

    /// Without a word, what the documents promise; ages and sizes in the units that people write, from
    /// flags before variables.
    #[test]
    fn reads_ages_and_sizes() {
        assert_eq!(parse("", &[]).unwrap(), Some(StoreConfig::default()));
        assert_eq!(parse("--store off", &[]).unwrap(), None);
        let variables = [
            ("DECNET_TRACE_STORE_DIR", "/srv/y"),
            ("DECNET_TRACE_STORE_MAX_AGE", "90m"),
        ];
        let config = parse("--store /srv/x --store-max-size 1GiB", &variables).unwrap();
        let expected = StoreConfig {
            folder: "/srv/x".into(),
            is_required: true,
            max_age: Duration::from_secs(5400),
            max_size: 1 << 30,
        };
        assert_eq!(config, Some(expected));
        assert_eq!(
            parse("", &[("DECNET_TRACE_STORE_DIR", "off")]).unwrap(),
            None
        );
    }

    /// What is no age or size, or too little, is a wrong command line, and the line says what is right.
    #[test]
    fn refuses_what_makes_no_sense() {
        for (line, hint) in [
            ("--store-max-age tomorrow", "24h"),
            ("--store-max-age 1s", "1m"),
            ("--store-max-size much", "512MiB"),
            ("--store-max-size 5KiB", "8.0 MiB"),
        ] {
            let error = parse(line, &[]).unwrap_err();
            assert!(error.to_string().contains(hint), "{line}: {error}");
            let flag = line.split(' ').next().unwrap();
            assert!(error.to_string().starts_with(flag), "{line}: {error}");
            assert_eq!(error.exit(), Exit::Usage);
        }
    }
}
