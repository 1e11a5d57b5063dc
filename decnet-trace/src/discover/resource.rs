//! A process as OpenTelemetry describes what telemetry comes from.

use std::{borrow::Cow, fs};

use smol_str::SmolStr;

use super::{
    command::Command,
    name::{self, Clues},
    process::{Process, telling_command},
    procfs,
    runtime::Runtime,
};
use crate::span::{Resource, Value};

/// The most attributes taken from a process's environment.
const ENVIRONMENT_ATTRIBUTES_MAX: usize = 64;
/// The most bytes of such an attribute's key or value.
const ENVIRONMENT_TEXT_MAX: usize = 1024;

type Attributes = Vec<(Cow<'static, str>, Value)>;

/// What the agent's own configuration says about every process.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The name of every service, in place of what its process says.
    pub service_name: Option<String>,
    /// Attributes of every process; what the process says itself comes first.
    pub attributes: Vec<(String, String)>,
}

/// What is the same for all processes of the machine.
#[derive(Clone, Debug)]
pub(super) struct Host {
    name: Option<String>,
    id: Option<String>,
}

impl Host {
    pub(super) fn read() -> Self {
        let line = |path| {
            let text = fs::read_to_string(path).ok()?;
            let line = text.trim();
            (!line.is_empty()).then(|| line.to_owned())
        };
        Self {
            name: line("/proc/sys/kernel/hostname"),
            id: line("/etc/machine-id"),
        }
    }
}

/// Describes a process. `cmdline` is the command line with its secrets; none of them get out.
pub(super) fn describe(
    process: &Process,
    cmdline: &[String],
    parent_name: Option<&str>,
    host: &Host,
    overrides: &Overrides,
) -> Resource {
    let [otel_name, otel_attributes] = procfs::environment(
        process.pid,
        ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"],
    )
    .unwrap_or_default();
    let own = parse_attributes(otel_attributes.as_deref().unwrap_or_default());
    let own_name = own
        .iter()
        .find(|(key, _)| key == "service.name")
        .map(|(_, value)| value.as_str());

    let is_python = process.runtime.is_python();
    let command = is_python.then(|| Command::parse(cmdline));
    let is_child = command
        .as_ref()
        .is_some_and(Command::is_multiprocessing_child);
    let telling = command.map(|command| telling_command(process.pid, process.ppid, command));
    let (command, cwd) = telling.unzip();
    let named = name::service_name(&Clues {
        otel_name: otel_name.as_deref(),
        otel_attribute: own_name,
        command: command.as_ref(),
        cwd: cwd.flatten().as_deref(),
        container: process.container_name.as_deref(),
        comm: &process.comm,
    });
    // A worker is called as the server that started it.
    let inherited = parent_name.filter(|_| is_child && otel_name.is_none() && own_name.is_none());
    let service_name = overrides
        .service_name
        .clone()
        .or_else(|| inherited.map(str::to_owned))
        .unwrap_or(named);
    assemble(process, service_name, own, host, overrides)
}

/// Describes a child that was forked and executed nothing, from its parent's description.
pub(super) fn describe_forked(
    process: &Process,
    parent: &Process,
    described: &Resource,
    host: &Host,
) -> Resource {
    let found_out = own_attributes(parent, host);
    // What the environment set in their place was inherited with it.
    let mut attributes: Attributes = described
        .attributes
        .iter()
        .filter(|attribute| !found_out.contains(attribute))
        .cloned()
        .collect();
    for (key, value) in own_attributes(process, host) {
        if !attributes.iter().any(|(other, _)| *other == key) {
            attributes.push((key, value));
        }
    }
    Resource {
        tgid: process.pid,
        service_name: described.service_name.clone(),
        attributes,
    }
}

/// The attributes that differ from one process to another, even if one is a fork of the other.
fn own_attributes(process: &Process, host: &Host) -> Attributes {
    let place = process
        .container
        .as_deref()
        .map(|id| id.get(..12).unwrap_or(id))
        .or(host.name.as_deref())
        .unwrap_or("localhost");
    let mut attributes = vec![
        (
            "service.instance.id".into(),
            text(format!("{place}:{}:{}", process.pid, process.start)),
        ),
        ("process.pid".into(), Value::Int(process.pid.into())),
        ("process.parent_pid".into(), Value::Int(process.ppid.into())),
    ];
    if process.inner_pid != 0 && process.inner_pid != process.pid {
        attributes.push(("process.vpid".into(), Value::Int(process.inner_pid.into())));
    }
    attributes
}

fn assemble(
    process: &Process,
    service_name: String,
    environment: Vec<(String, String)>,
    host: &Host,
    overrides: &Overrides,
) -> Resource {
    let mut attributes: Attributes = vec![("service.name".into(), text(service_name.clone()))];
    attributes.extend(own_attributes(process, host));
    attributes.extend([
        ("process.executable.name".into(), text(process.exe_name())),
        (
            "process.executable.path".into(),
            text(process.exe.to_string_lossy()),
        ),
    ]);
    if let Some(command) = process.arguments.first() {
        let arguments = process.arguments.iter().map(SmolStr::from).collect();
        attributes.extend([
            ("process.command".into(), text(command.as_str())),
            ("process.command_args".into(), Value::StrList(arguments)),
        ]);
    }
    attributes.push(("process.runtime.name".into(), text(process.runtime.name())));
    if let Runtime::CPython { version, .. } = &process.runtime {
        attributes.push(("process.runtime.version".into(), text(version.to_string())));
    }
    let optional = [
        ("container.id", &process.container),
        ("container.name", &process.container_name),
        ("host.name", &host.name),
        ("host.id", &host.id),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            attributes.push((key.into(), text(value.as_str())));
        }
    }
    attributes.extend([
        ("host.arch".into(), text(host_arch())),
        ("os.type".into(), text("linux")),
        ("telemetry.sdk.name".into(), text("decnet-trace")),
        (
            "telemetry.sdk.version".into(),
            text(env!("CARGO_PKG_VERSION")),
        ),
    ]);
    if process.runtime.is_python() {
        attributes.push(("telemetry.sdk.language".into(), text("python")));
    }
    // What the process says about itself replaces what was found out; what the agent's configuration
    // says only fills in. The name is settled already.
    for (key, value) in environment {
        if key != "service.name" {
            put(&mut attributes, key, value, true);
        }
    }
    for (key, value) in &overrides.attributes {
        put(&mut attributes, key.clone(), value.clone(), false);
    }
    Resource {
        tgid: process.pid,
        service_name,
        attributes,
    }
}

fn put(attributes: &mut Attributes, key: String, value: String, replace: bool) {
    match attributes.iter_mut().find(|(other, _)| *other == key) {
        Some((_, old)) if replace => *old = text(value),
        Some(_) => {}
        None => attributes.push((key.into(), text(value))),
    }
}

fn text(text: impl Into<SmolStr>) -> Value {
    Value::Str(text.into())
}

/// The architecture's name in OpenTelemetry's conventions.
fn host_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Parses `OTEL_RESOURCE_ATTRIBUTES`: `key=value` pairs between commas, percent-encoded. What is no
/// pair is left out.
fn parse_attributes(text: &str) -> Vec<(String, String)> {
    text.split(',')
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let (key, value) = (decode(key.trim())?, decode(value.trim())?);
            (!key.is_empty()).then_some((key, value))
        })
        .take(ENVIRONMENT_ATTRIBUTES_MAX)
        .collect()
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    let text = String::from_utf8(bytes).ok()?;
    (text.len() <= ENVIRONMENT_TEXT_MAX).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn process() -> Process {
        Process {
            pid: 4242,
            start: 99,
            ppid: 1,
            comm: "uvicorn".into(),
            exe: PathBuf::from("/usr/bin/python3.11"),
            arguments: vec!["python3".into(), "--token".into(), "REDACTED".into()],
            cwd: None,
            listening: Vec::new(),
            runtime: Runtime::Other("PyPy"),
            container: Some("3f4c9a1b2d5e6f70".into()),
            container_name: None,
            uid: 0,
            inner_pid: 7,
            image: 1,
        }
    }

    fn value<'a>(resource: &'a Resource, key: &str) -> Option<&'a Value> {
        let mut found = resource.attributes.iter().filter(|(other, _)| other == key);
        let value = found.next().map(|(_, value)| value);
        assert!(found.next().is_none(), "{key} stands twice");
        value
    }

    /// What the process says replaces what was found out, the agent's configuration fills in, and no
    /// key stands twice.
    #[test]
    fn merges_attributes() {
        let host = Host {
            name: Some("h".into()),
            id: None,
        };
        let overrides = Overrides {
            service_name: None,
            attributes: vec![
                ("host.name".into(), "no".into()),
                ("team".into(), "a".into()),
            ],
        };
        let own = parse_attributes("service.name=x,host.name=mine,service.version=1%2C2,=y,bad");
        let resource = assemble(&process(), "shop".into(), own, &host, &overrides);
        for (key, expected) in [
            ("service.name", "shop"),
            ("host.name", "mine"),
            ("service.version", "1,2"),
            ("team", "a"),
            ("service.instance.id", "3f4c9a1b2d5e:4242:99"),
            ("process.runtime.name", "PyPy"),
            ("telemetry.sdk.language", "python"),
        ] {
            assert_eq!(value(&resource, key), Some(&text(expected)), "{key}");
        }
        assert_eq!(value(&resource, "process.vpid"), Some(&Value::Int(7)));
        assert_eq!(value(&resource, "bad"), None);

        let child = Process {
            pid: 4300,
            inner_pid: 9,
            ..process()
        };
        let forked = describe_forked(&child, &process(), &resource, &host);
        assert_eq!(forked.tgid, 4300);
        assert_eq!(value(&forked, "process.pid"), Some(&Value::Int(4300)));
        assert_eq!(value(&forked, "process.vpid"), Some(&Value::Int(9)));
        assert_eq!(value(&forked, "service.version"), Some(&text("1,2")));
    }

    proptest! {
        /// No environment makes the parser panic, and what was encoded is decoded.
        #[test]
        fn decodes_attributes(any in "\\PC{0,60}", value in "\\PC{0,20}") {
            let _ = parse_attributes(&any);
            let encoded: String = value.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(
                parse_attributes(&format!("key={encoded}")),
                vec![("key".to_owned(), value)]
            );
        }
    }
}
