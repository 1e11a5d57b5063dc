//! What the settings mean for the parts of the agent.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use super::{Settings, layers::world_readable, otlp, value};
use crate::{
    correlate::wanted::{Wanted, WantedHeaders},
    discover::{Overrides, Selector},
    error::{Error, Result},
    export::{OtlpConfig, PrometheusConfig, prometheus::Token},
    policy::{
        ClientAddress, Pattern, PolicyConfig, Rules, header_attribute, rules::Rule,
        template::Template,
    },
    sampling::{Sampler, SamplingConfig},
    store::{FOLDER, StoreConfig},
};

/// The shortest key that addresses are hashed with, in bytes.
const KEY_MIN: usize = 16;

/// The largest file that holds a secret, in bytes.
const SECRET_MAX: u64 = 64 << 10;

impl Settings {
    /// What is made of requests.
    ///
    /// # Errors
    ///
    /// When a file with a key cannot be read or is too short, or there are no random bytes for one.
    pub fn policy(&self, warnings: &mut Vec<String>) -> Result<PolicyConfig> {
        let redaction = &self.redaction;
        let rules = redaction.rules.iter().map(|rule| {
            let places: Vec<_> = rule.places.iter().map(|place| (*place).into()).collect();
            Rule::new(rule.pattern.as_str(), &rule.replacement, &places).map_err(Error::usage)
        });
        let patterns = self.routes.patterns.iter().map(|patterns| {
            let glob = patterns.service.as_str();
            Ok(Pattern {
                service: match glob {
                    "" => None,
                    glob => Some(
                        globset::Glob::new(glob)
                            .map_err(Error::usage)?
                            .compile_matcher(),
                    ),
                },
                templates: patterns
                    .paths
                    .iter()
                    .filter_map(|path| Template::new(path.as_str()))
                    .collect(),
            })
        });
        Ok(PolicyConfig {
            redact: redaction.enabled,
            query_allow: redaction
                .query_allow
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            rules: Rules::new(rules.collect::<Result<_>>()?),
            client_address: self.client_address(warnings)?,
            headers: Arc::new(WantedHeaders {
                request: wanted(true, &redaction.request_headers),
                response: wanted(false, &redaction.response_headers),
            }),
            routes_max: self.routes.max,
            patterns: patterns.collect::<Result<_>>()?,
        })
    }

    fn client_address(&self, warnings: &mut Vec<String>) -> Result<ClientAddress> {
        let file = &self.redaction.hash_key_file;
        Ok(match self.redaction.client_address {
            value::ClientAddress::Whole => ClientAddress::Whole,
            value::ClientAddress::Cut => ClientAddress::Cut,
            value::ClientAddress::Hashed if file.is_empty() => {
                ClientAddress::hashed(&key_of_this_run()?)
            }
            value::ClientAddress::Hashed => {
                let key = secret("redaction.hash_key_file", file, warnings)?;
                let key = key.trim();
                if key.len() < KEY_MIN {
                    return Err(Error::usage(format_args!(
                        "redaction.hash_key_file {file} holds fewer than {KEY_MIN} bytes; \
                         `openssl rand -hex 32` makes a key"
                    )));
                }
                ClientAddress::hashed(key.as_bytes())
            }
        })
    }

    /// Where spans, metrics and log records are sent, if anywhere.
    ///
    /// # Errors
    ///
    /// When an endpoint is no URL, a file cannot be read, or a certificate lacks its key.
    ///
    /// `variable` looks up OpenTelemetry's lists of exporters.
    pub fn otlp(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<OtlpConfig>> {
        otlp::config(self, variable, warnings)
    }

    /// Which traces are kept.
    ///
    /// # Errors
    ///
    /// When there is no such sampler.
    pub fn sampling(&self) -> Result<SamplingConfig> {
        let sampling = &self.sampling;
        let rate = sampling.traces_per_second.0;
        Ok(SamplingConfig {
            sampler: Sampler::parse(
                sampling.sampler.as_str(),
                Some(sampling.sampler_arg.as_str()),
            )?,
            ratio: sampling.sample.0,
            traces_per_second: (rate > 0.0).then_some(rate),
            keep_slow: value::slow(sampling.keep_slow.as_str()).map_err(Error::usage)?,
            ..SamplingConfig::default()
        })
    }

    /// What is kept on this machine, if anything.
    ///
    /// # Errors
    ///
    /// When an age or a size is none.
    pub fn store(&self) -> Result<Option<StoreConfig>> {
        let store = &self.store;
        if store.dir == "off" {
            return Ok(None);
        }
        let named = (!store.dir.is_empty()).then(|| PathBuf::from(&store.dir));
        Ok(Some(StoreConfig {
            is_required: named.is_some(),
            folder: named.unwrap_or_else(|| FOLDER.into()),
            max_age: value::age(store.max_age.as_str()).map_err(Error::usage)?,
            max_size: value::size(store.max_size.as_str()).map_err(Error::usage)?,
        }))
    }

    /// Where metrics may be asked for, if anywhere.
    ///
    /// # Errors
    ///
    /// When the token's file cannot be read.
    pub fn prometheus(&self, warnings: &mut Vec<String>) -> Result<Option<PrometheusConfig>> {
        let Ok(listen) = self.metrics.listen.as_str().parse() else {
            return Ok(None);
        };
        let file = &self.metrics.token_file;
        let token = match file.is_empty() {
            true => None,
            false => {
                warnings.extend(world_readable(Path::new(file)));
                Some(Token::read(Path::new(file))?)
            }
        };
        Ok(Some(PrometheusConfig { listen, token }))
    }

    /// Which processes are traced, beside these.
    ///
    /// # Errors
    ///
    /// When a name is no glob.
    pub fn selector(&self, pids: &[u32]) -> Result<Selector> {
        let texts = |globs: &[value::Glob]| -> Vec<_> {
            globs.iter().map(|glob| glob.as_str().to_owned()).collect()
        };
        let targets = &self.targets;
        Selector::new(pids, &texts(&targets.names), &targets.ports)
            .and_then(|selector| selector.without(&texts(&targets.exclude)))
            .map_err(Error::usage)
    }

    /// What telemetry is said to come from.
    pub fn overrides(&self) -> Overrides {
        let name = &self.resource.service_name;
        Overrides {
            service_name: (!name.is_empty()).then(|| name.clone()),
            attributes: self
                .resource
                .attributes
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }

    /// What is in effect once a configuration was read again, and the keys of it that only another start
    /// changes. `live` says of a key whether it changes at once.
    pub fn reread(
        &self,
        read: &Self,
        live: impl Fn(&str) -> bool,
    ) -> Result<(Self, Vec<String>), toml::ser::Error> {
        let now = toml::Table::try_from(self)?;
        let mut next = toml::Table::try_from(read)?;
        let mut fixed = Vec::new();
        for (section, keys) in &mut next {
            let before = now.get(section);
            for (key, value) in keys.as_table_mut().into_iter().flatten() {
                let path = format!("{section}.{key}");
                if let Some(before) = before.and_then(|keys| keys.get(key))
                    && before != value
                    && !live(&path)
                {
                    *value = before.clone();
                    fixed.push(path);
                }
            }
        }
        let next = next.try_into().unwrap_or_else(|_| self.clone());
        Ok((next, fixed))
    }

    /// Whether everything can be made of it that is made of it at the start.
    ///
    /// # Errors
    ///
    /// When something cannot.
    pub fn check(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        self.selector(&[])?;
        self.policy(warnings)?;
        self.otlp(variable, warnings)?;
        self.sampling()?;
        self.store()?;
        self.prometheus(warnings)?;
        Ok(())
    }
}

/// The headers of these names.
fn wanted(is_request: bool, names: &[value::Header]) -> Box<[Wanted]> {
    let wanted = names.iter().map(|name| Wanted {
        name: name.as_str().to_ascii_lowercase().into(),
        attribute: header_attribute(is_request, name.as_str()),
    });
    wanted.collect()
}

/// The key that addresses are hashed with where no file holds one: the same for as long as the agent
/// runs, so that a client does not become another one when the configuration is read again.
fn key_of_this_run() -> Result<[u8; 32]> {
    static KEY: OnceLock<[u8; 32]> = OnceLock::new();

    if let Some(key) = KEY.get() {
        return Ok(*key);
    }
    let mut key = [0; 32];
    getrandom::fill(&mut key)
        .map_err(|error| Error::failed(format!("cannot get random numbers: {error}")))?;
    Ok(*KEY.get_or_init(|| key))
}

/// Reads a file that holds a secret.
pub(super) fn secret(key: &str, file: &str, warnings: &mut Vec<String>) -> Result<String> {
    use std::io::Read as _;

    let mut text = String::new();
    fs::File::open(file)
        .and_then(|file| file.take(SECRET_MAX).read_to_string(&mut text))
        .map_err(|error| {
            Error::usage(format_args!(
                "cannot read {key} {file}: {error}; name a file that can be read"
            ))
        })?;
    warnings.extend(world_readable(Path::new(file)));
    Ok(text)
}
