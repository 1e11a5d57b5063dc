//! The configuration as a whole.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::Path};

use super::*;
use crate::error::Exit;

fn load(text: &str, variables: &[(&str, &str)]) -> crate::error::Result<Loaded> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    fs::write(&path, text).unwrap();
    let loader = Loader {
        file: Some(path),
        flags: Vec::new(),
    };
    loader.load(|name| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

/// The example in the documents is the one that the code makes; to write it anew:
/// `decnet-trace config show --example > docs/config.example.toml`.
#[test]
fn the_example_is_the_codes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.example.toml");
    let text = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text,
        example(),
        "{} is not what the code says",
        path.display()
    );
}

/// The example's keys, with the comments taken off, say the defaults.
#[test]
fn the_example_says_the_defaults() {
    let text: String = example()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let loaded = load(&text, &[]).unwrap();
    let default = toml::Table::try_from(Settings::default()).unwrap();
    assert_eq!(toml::Table::try_from(&loaded.settings).unwrap(), default);
    let keys: usize = Settings::sections()
        .iter()
        .map(|section| section.keys.len())
        .sum();
    assert_eq!(loaded.origins.len(), keys);
}

/// Flags come before the environment, the environment before the file; and each value says where it
/// comes from.
#[test]
fn later_layers_win() {
    let text =
        "[otlp]\nendpoint = 'http://file'\nprotocol = 'http/protobuf'\n[profile]\nrate = 7\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    fs::write(&path, text).unwrap();
    let loader = Loader {
        file: Some(path.clone()),
        flags: vec![Flag {
            key: "profile.rate",
            flag: "--rate",
            value: toml::Value::Integer(9),
        }],
    };
    let variable = |name: &str| match name {
        "DECNET_TRACE_PROFILE_RATE" => Some("8".to_owned()),
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://otel".to_owned()),
        "DECNET_OTEL_ENDPOINT" => Some("http://decnet".to_owned()),
        "OTEL_EXPORTER_OTLP_TIMEOUT" => Some("2500".to_owned()),
        "OTEL_EXPORTER_OTLP_HEADERS" => Some("api-key=s3cr3t".to_owned()),
        _ => None,
    };
    let loaded = loader.load(variable).unwrap();
    let settings = &loaded.settings;
    assert_eq!(settings.profile.rate, 9);
    assert_eq!(settings.otlp.endpoint.as_str(), "http://otel");
    assert_eq!(settings.otlp.timeout.to_string(), "2500ms");
    assert_eq!(settings.otlp.protocol.as_str(), "http/protobuf");
    let shown = loaded.show(true);
    for line in [
        "rate = 9  # --rate".to_owned(),
        "endpoint = \"http://otel\"  # OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
        format!("protocol = \"http/protobuf\"  # {}", path.display()),
        "compression = \"none\"  # default".to_owned(),
    ] {
        assert!(shown.contains(&line), "{line}\n{shown}");
    }
    assert!(!shown.contains("s3cr3t"), "{shown}");
}

/// Every key can be set by its variable.
#[test]
fn every_key_has_its_variable() {
    for section in Settings::sections() {
        for key in section.keys {
            let name = layers::variable_of(section.name, key.name);
            let value = match section.defaults.get(key.name) {
                Some(toml::Value::Integer(_)) => "3",
                Some(toml::Value::Boolean(_)) => "no",
                Some(toml::Value::Float(_)) => "0.5",
                Some(toml::Value::Array(_)) if key.name == "ports" => "80,81",
                Some(toml::Value::Array(_)) if key.name == "rules" => "[{ pattern = 'a' }]",
                Some(toml::Value::Array(_)) if key.name == "patterns" => "[{ paths = ['/a'] }]",
                Some(toml::Value::Table(_)) => "a=b,c=d",
                _ => match key.name {
                    "protocol" => "http/protobuf",
                    "headers" => "a=b",
                    "timeout" => "3s",
                    "compression" => "gzip",
                    "client_address" => "cut",
                    "metrics_every" => "0s",
                    "sampler" => "traceidratio",
                    "sampler_arg" => "0.5",
                    "keep_slow" => "p99",
                    "listen" => "127.0.0.1:1",
                    "endpoint" => "http://h",
                    "max_age" => "3days",
                    "max_size" => "64MiB",
                    _ => "text",
                },
            };
            let loaded = load("", &[(&name, value)]).unwrap();
            let path = format!("{}.{}", section.name, key.name);
            assert_eq!(loaded.origins.get(&path), Some(&Origin::Variable(name)));
        }
    }
}

/// What is wrong with a file is said with its line and column, and ends with the code for usage.
#[test]
fn errors_name_their_place() {
    for (text, want) in [
        ("[otlp]\nendpiont = 'x'\n", ":2:1: unknown field `endpiont`"),
        ("[oltp]\n", ":1:2: unknown field `oltp`"),
        (
            "[profile]\nrate = 'fast'\n",
            ":2:8: invalid type: string \"fast\"",
        ),
        ("[profile]\nrate = \n", ":2:"),
        (
            "\n[otlp]\n  protocol = 'udp'\n",
            ":3:14: OTLP protocol \"udp\"",
        ),
        (
            "[otlp]\ntimeout = '10'\n",
            ":2:11: \"10\" is no length of time",
        ),
        ("[targets]\nnames = ['ok', 'a[']\n", ":2:9: "),
        ("[sampling]\nsample = 2\n", ":2:10: 2 is no share"),
        (
            "[otlp]\nendpoint = 'ftp://x'\n",
            ":2:12: OTLP endpoint \"ftp://x\" is no URL of http",
        ),
        (
            "[otlp_logs]\nendpoint = 'nonsense'\n",
            ":2:12: OTLP endpoint \"nonsense\" has neither",
        ),
        (
            "[sampling]\nsampler = 'traceidratio'\nsampler_arg = '1.5'\n",
            ":3:15: \"1.5\" is no share",
        ),
        (
            "[sampling]\ntraces_per_second = -1\n",
            ":2:21: -1 is no rate",
        ),
        (
            "[sampling]\ntraces_per_second = inf\n",
            ":2:21: inf is no rate",
        ),
        (
            "[agent]\ncpu_budget = -1\n",
            ":2:14: -1 is no share; give per cent",
        ),
        (
            "[sampling]\nkeep_slow = 'p98'\n",
            ":2:13: \"p98\" is not slow",
        ),
        (
            "[metrics]\nlisten = '9464'\n",
            ":2:10: \"9464\" is no address",
        ),
        ("[store]\nmax_age = '5s'\n", ":2:11: \"5s\" is too short"),
        ("[store]\nmax_size = 'big'\n", ":2:12: \"big\" is no size"),
        (
            "[redaction]\nrequest_headers = ['x-tenant', 'Authorization']\n",
            ":2:19: \"Authorization\" carries credentials",
        ),
        (
            "[redaction]\nclient_address = 'half'\n",
            ":2:18: unknown variant `half`",
        ),
        (
            "[[redaction.rules]]\npattern = 'a('\n",
            ":2:11: unclosed group",
        ),
        (
            "[[redaction.rules]]\nreplacement = 'a'\n",
            "missing field `pattern`",
        ),
        (
            "[[routes.patterns]]\npaths = ['a']\n",
            ":2:9: a route begins with /",
        ),
    ] {
        let error = load(text, &[]).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
        assert_eq!(error.exit(), Exit::Usage);
    }
    for (name, value) in [
        ("DECNET_TRACE_PROFILE_RATE", "many"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "lzma"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense"),
        ("OTEL_TRACES_SAMPLER_ARG", "most"),
        ("DECNET_TRACE_SAMPLING_TRACES_PER_SECOND", "-1"),
        ("DECNET_TRACE_ROUTES_LEARN", "maybe"),
    ] {
        let error = load("", &[(name, value)]).unwrap_err();
        assert!(error.to_string().starts_with(name), "{error}");
        assert_eq!(error.exit(), Exit::Usage);
    }
    let gone = Loader {
        file: Some("/nowhere/config.toml".into()),
        flags: Vec::new(),
    };
    assert_eq!(gone.load(|_| None).unwrap_err().exit(), Exit::Usage);
}

/// Secrets come out of files, and a file that everyone can read is warned of.
#[test]
fn secrets_lie_in_files() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let headers = folder.path().join("headers");
    fs::write(&key, "0123456789abcdef\n").unwrap();
    fs::write(
        &headers,
        "# for the collector\napi-key=s3cr3t\nx-tenant=a\n",
    )
    .unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(&headers, fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "[redaction]\nclient_address = 'hashed'\nhash_key_file = '{}'\n\
         [otlp]\nendpoint = 'http://h'\nheaders_file = '{}'\n",
        key.display(),
        headers.display()
    );
    let settings = load(&text, &[]).unwrap().settings;
    let mut warnings = Vec::new();
    let otlp = settings.otlp(&|_| None, &mut warnings).unwrap().unwrap();
    assert_eq!(otlp.headers.0.len(), 2);
    assert!(warnings.is_empty());
    settings.policy(&mut warnings).unwrap();
    assert_eq!(warnings.len(), 1);
    fs::write(&key, "short").unwrap();
    let error = settings.policy(&mut warnings).unwrap_err();
    assert!(error.to_string().contains("fewer than 16 bytes"), "{error}");
}
