//! What the settings mean for the parts of the agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Settings, layers::world_readable, value};
use crate::{
    discover::{Overrides, Selector},
    error::{Error, Result},
    export::{
        PrometheusConfig,
        otlp::{Headers, OtlpConfig},
        prometheus::Token,
    },
    policy::{ClientAddress, Pattern, PolicyConfig, Rules, rules::Rule, template::Template},
    sampling::{Sampler, SamplingConfig},
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
                let mut key = [0; 32];
                getrandom::fill(&mut key).map_err(|error| {
                    Error::failed(format!("cannot get random numbers: {error}"))
                })?;
                ClientAddress::hashed(&key)
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

    /// Where spans are sent, if anywhere.
    ///
    /// # Errors
    ///
    /// When the endpoint is no URL, a file cannot be read, or a certificate lacks its key.
    ///
    /// `variable` looks up OpenTelemetry's lists of exporters.
    pub fn otlp(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<OtlpConfig>> {
        let otlp = &self.otlp;
        if otlp.endpoint.is_empty() {
            return Ok(None);
        }
        let path = |text: &String| (!text.is_empty()).then(|| PathBuf::from(text));
        let mut headers: Headers = otlp.headers.as_str().parse()?;
        if let Some(file) = path(&otlp.headers_file) {
            let text = secret("otlp.headers_file", &otlp.headers_file, warnings)?;
            let lines: Vec<_> = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .collect();
            let more: Headers = lines
                .join(",")
                .parse()
                .map_err(|error| Error::usage(format_args!("{}: {error}", file.display())))?;
            headers.0.extend(more.0);
        }
        let identity = match (path(&otlp.client_certificate), path(&otlp.client_key)) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            _ => {
                return Err(Error::usage(
                    "a client's certificate needs its key: set both otlp.client_certificate and otlp.client_key",
                ));
            }
        };
        let mut lists = OtlpConfig::new(otlp.endpoint.as_str());
        lists.apply_env(|name| match name {
            "OTEL_METRICS_EXPORTER" | "OTEL_LOGS_EXPORTER" => variable(name),
            _ => None,
        })?;
        let every = otlp.metrics_every.0;
        let config = OtlpConfig {
            metrics_every: lists
                .metrics_every
                .filter(|_| !every.is_zero())
                .map(|_| every),
            logs: lists.logs && otlp.logs,
            protocol: otlp.protocol.as_str().parse()?,
            headers,
            timeout: otlp.timeout.0,
            compression: otlp.compression.as_str().parse()?,
            certificate: path(&otlp.certificate),
            identity,
            ..OtlpConfig::new(otlp.endpoint.as_str())
        };
        config.check()?;
        Ok(Some(config))
    }

    /// Which traces are kept.
    ///
    /// # Errors
    ///
    /// When the sampler's argument is no ratio, or a rate is negative.
    pub fn sampling(&self) -> Result<SamplingConfig> {
        let sampling = &self.sampling;
        let rate = sampling.traces_per_second;
        if !(rate.is_finite() && rate >= 0.0) {
            return Err(Error::usage(format_args!(
                "sampling.traces_per_second is {rate}; give a number above 0, or 0 for all"
            )));
        }
        Ok(SamplingConfig {
            sampler: Sampler::parse(sampling.sampler.as_str(), Some(&sampling.sampler_arg))?,
            ratio: sampling.sample.0,
            traces_per_second: (rate > 0.0).then_some(rate),
            keep_slow: value::slow(sampling.keep_slow.as_str()).map_err(Error::usage)?,
            ..SamplingConfig::default()
        })
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
        let names: Vec<_> = self
            .targets
            .names
            .iter()
            .map(|name| name.as_str().to_owned())
            .collect();
        Selector::new(pids, &names, &self.targets.ports).map_err(Error::usage)
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

    /// Whether another configuration differs in what is made at the start alone.
    pub fn needs_restart(&self, other: &Self) -> bool {
        let fixed = |settings: &Self| {
            let mut settings = settings.clone();
            settings.redaction = Default::default();
            settings.routes = super::Routes {
                learn: settings.routes.learn,
                max: settings.routes.max,
                ..Default::default()
            };
            toml::Table::try_from(&settings).ok()
        };
        fixed(self) != fixed(other)
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
        self.prometheus(warnings)?;
        Ok(())
    }
}

/// Reads a file that holds a secret.
fn secret(key: &str, file: &str, warnings: &mut Vec<String>) -> Result<String> {
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
