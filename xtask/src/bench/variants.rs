//! What is compared: the agent in several configurations, and other tools.

/// Something that may cost a service something.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// Its name in ids.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// The agent, with these arguments; `PID`, `BACKEND` and `{}` (a folder) are filled in.
    Agent(&'static [&'static str]),
    /// py-spy record, so many times a second.
    PySpy(u32),
    /// In a process of its own from its start: a value of `BENCH_WITH`.
    Inside(&'static str),
}

/// All of them.
pub const VARIANTS: &[Variant] = &[
    Variant {
        name: "agent",
        what: "agent, its defaults (run --pid)",
        kind: Kind::Agent(&["run", "--pid", "PID", "--store", "{}/store"]),
    },
    Variant {
        name: "sampled",
        what: "agent, 1 % sampled",
        kind: Kind::Agent(&[
            "run",
            "--pid",
            "PID",
            "--store",
            "{}/store",
            "--sampler",
            "traceidratio",
            "--sampler-arg",
            "0.01",
        ]),
    },
    Variant {
        name: "spans",
        what: "agent, spans only",
        kind: Kind::Agent(&[
            "run",
            "--pid",
            "PID",
            "--rate",
            "0",
            "--no-lineage",
            "--store",
            "off",
            "--spans-file",
            "{}/spans",
        ]),
    },
    Variant {
        name: "profiling",
        what: "agent, profiling only, 19 Hz",
        kind: Kind::Agent(&[
            "record",
            "--pid",
            "PID",
            "--rate",
            "19",
            "--output",
            "{}/flame.svg",
        ]),
    },
    Variant {
        name: "profiling-100",
        what: "agent, profiling only, 100 Hz",
        kind: Kind::Agent(&[
            "record",
            "--pid",
            "PID",
            "--rate",
            "100",
            "--output",
            "{}/flame.svg",
        ]),
    },
    Variant {
        name: "lineage",
        what: "agent, spans with lineage",
        kind: Kind::Agent(&[
            "run",
            "--pid",
            "PID",
            "--rate",
            "0",
            "--store",
            "off",
            "--spans-file",
            "{}/spans",
        ]),
    },
    Variant {
        name: "everything",
        what: "agent, spans, lineage, 19 Hz, all sinks",
        kind: Kind::Agent(&[
            "run",
            "--pid",
            "PID",
            "--rate",
            "19",
            "--profile-out",
            "{}/flame.svg",
            "--summary",
            "--store",
            "{}/store",
            "--spans-file",
            "{}/spans",
            "--otlp-endpoint",
            "BACKEND",
            "--otlp-protocol",
            "http/protobuf",
        ]),
    },
    Variant {
        name: "failing",
        what: "agent, its defaults, an endpoint that never answers",
        kind: Kind::Agent(&[
            "run",
            "--pid",
            "PID",
            "--store",
            "{}/store",
            // An address of documentation (RFC 5737): nobody has it.
            "--otlp-endpoint",
            "http://192.0.2.1:4317",
        ]),
    },
    Variant {
        name: "py-spy",
        what: "py-spy record, 100 Hz",
        kind: Kind::PySpy(100),
    },
    Variant {
        name: "otel",
        what: "OpenTelemetry's SDK, FastAPI + drivers, OTLP",
        kind: Kind::Inside("otel"),
    },
    Variant {
        name: "memray",
        what: "memray, all allocations",
        kind: Kind::Inside("memray"),
    },
    Variant {
        name: "pyinstrument",
        what: "pyinstrument, every request",
        kind: Kind::Inside("pyinstrument"),
    },
];

impl Variant {
    /// The variant of that name.
    pub fn named(name: &str) -> Option<Self> {
        VARIANTS
            .iter()
            .find(|variant| variant.name == name)
            .copied()
    }

    /// The agent's arguments, for that service.
    pub fn args(&self, pid: u32, backend: &str) -> Option<Vec<String>> {
        let Kind::Agent(args) = self.kind else {
            return None;
        };
        Some(
            args.iter()
                .map(|arg| {
                    arg.replace("PID", &pid.to_string())
                        .replace("BACKEND", backend)
                })
                .collect(),
        )
    }
}
