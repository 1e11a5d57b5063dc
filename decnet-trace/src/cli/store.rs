//! Where the store is: the same words for every verb.

use std::{convert::Infallible, path::PathBuf, str::FromStr, time::Duration};

use bytesize::ByteSize;
use clap::Args;

use crate::{
    error::{Error, Result},
    store::{AGE_MIN, FOLDER, SIZE_MIN, StoreConfig},
};

/// What `--store` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere.
    Off,
    /// In this folder.
    Folder(PathBuf),
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "off" => Self::Off,
            folder => Self::Folder(folder.into()),
        })
    }
}

/// What is stored, and for how long.
#[derive(Args, Debug)]
pub(super) struct StoreArgs {
    /// Keep requests and samples in this folder, for `decnet-trace requests`; off keeps nothing
    /// [default: /var/lib/decnet-trace].
    #[arg(long, value_name = "DIR|off", help_heading = "Store")]
    store: Option<Place>,

    /// Delete what is older.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = age, help_heading = "Store")]
    store_max_age: Duration,

    /// Let its files grow to this size; the oldest is deleted then.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size, help_heading = "Store")]
    store_max_size: ByteSize,
}

impl StoreArgs {
    pub(super) fn config(&self) -> Option<StoreConfig> {
        let (folder, is_required) = match &self.store {
            Some(Place::Off) => return None,
            Some(Place::Folder(folder)) => (folder.clone(), true),
            None => (FOLDER.into(), false),
        };
        Some(StoreConfig {
            folder,
            is_required,
            max_age: self.store_max_age,
            max_size: self.store_max_size.as_u64(),
        })
    }
}

fn age(text: &str) -> Result<Duration> {
    let age = humantime::parse_duration(text)
        .map_err(|error| Error::usage(format_args!("{error}; say 24h, or 7days")))?;
    if age < AGE_MIN {
        return Err(Error::usage(format_args!(
            "say {} or more",
            humantime::format_duration(AGE_MIN)
        )));
    }
    Ok(age)
}

fn size(text: &str) -> Result<ByteSize> {
    let size: ByteSize = text
        .parse()
        .map_err(|error| Error::usage(format_args!("{error}; say 512MiB, or 2GB")))?;
    if size.as_u64() < SIZE_MIN {
        return Err(Error::usage(format_args!(
            "say {} or more",
            ByteSize(SIZE_MIN)
        )));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: StoreArgs,
    }

    fn parse(line: &str) -> Result<Option<StoreConfig>, String> {
        let words = ["run"].into_iter().chain(line.split_whitespace());
        match Line::try_parse_from(words) {
            Ok(line) => Ok(line.args.config()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Without a word, what the documents promise; ages and sizes in the units that people write.
    #[test]
    fn reads_ages_and_sizes() {
        assert_eq!(parse(""), Ok(Some(StoreConfig::default())));
        assert_eq!(parse("--store off"), Ok(None));
        let config = parse("--store /srv/x --store-max-age 90m --store-max-size 1GiB");
        let expected = StoreConfig {
            folder: "/srv/x".into(),
            is_required: true,
            max_age: Duration::from_secs(5400),
            max_size: 1 << 30,
        };
        assert_eq!(config, Ok(Some(expected)));
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
            let error = parse(line).unwrap_err();
            assert!(error.contains(hint), "{line}: {error}");
        }
    }
}
