//! pprof's `profile.proto`, compressed with gzip: what `go tool pprof`, Grafana, Parca, Pyroscope and
//! many others open.
//!
//! The messages are those of the public definition
//! (<https://github.com/google/pprof/blob/main/proto/profile.proto>), with the fields used here.

use std::{
    io::{self, Write},
    sync::Arc,
};

use flate2::{Compression, write::GzEncoder};
use prost::Message;
use rustc_hash::FxHashMap;

use crate::profile::{Frame, FrameKind, FunctionKey, Profile};

/// The messages of `profile.proto`; its documentation is in the definition.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Profile {
        #[prost(message, repeated, tag = "1")]
        pub(super) sample_type: Vec<ValueType>,
        #[prost(message, repeated, tag = "2")]
        pub(super) sample: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        pub(super) mapping: Vec<Mapping>,
        #[prost(message, repeated, tag = "4")]
        pub(super) location: Vec<Location>,
        #[prost(message, repeated, tag = "5")]
        pub(super) function: Vec<Function>,
        #[prost(string, repeated, tag = "6")]
        pub(super) string_table: Vec<String>,
        #[prost(int64, tag = "9")]
        pub(super) time_nanos: i64,
        #[prost(int64, tag = "10")]
        pub(super) duration_nanos: i64,
        #[prost(message, optional, tag = "11")]
        pub(super) period_type: Option<ValueType>,
        #[prost(int64, tag = "12")]
        pub(super) period: i64,
        #[prost(int64, repeated, tag = "13")]
        pub(super) comment: Vec<i64>,
        #[prost(int64, tag = "14")]
        pub(super) default_sample_type: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct ValueType {
        #[prost(int64, tag = "1")]
        pub(super) r#type: i64,
        #[prost(int64, tag = "2")]
        pub(super) unit: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Sample {
        /// Innermost first.
        #[prost(uint64, repeated, tag = "1")]
        pub(super) location_id: Vec<u64>,
        #[prost(int64, repeated, tag = "2")]
        pub(super) value: Vec<i64>,
        #[prost(message, repeated, tag = "3")]
        pub(super) label: Vec<Label>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Label {
        #[prost(int64, tag = "1")]
        pub(super) key: i64,
        #[prost(int64, tag = "2")]
        pub(super) str: i64,
        #[prost(int64, tag = "3")]
        pub(super) num: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Mapping {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(int64, tag = "5")]
        pub(super) filename: i64,
        #[prost(bool, tag = "7")]
        pub(super) has_functions: bool,
        #[prost(bool, tag = "8")]
        pub(super) has_filenames: bool,
        #[prost(bool, tag = "9")]
        pub(super) has_line_numbers: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Location {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(uint64, tag = "2")]
        pub(super) mapping_id: u64,
        #[prost(message, repeated, tag = "4")]
        pub(super) line: Vec<Line>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Line {
        #[prost(uint64, tag = "1")]
        pub(super) function_id: u64,
        #[prost(int64, tag = "2")]
        pub(super) line: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Function {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(int64, tag = "2")]
        pub(super) name: i64,
        #[prost(int64, tag = "3")]
        pub(super) system_name: i64,
        #[prost(int64, tag = "4")]
        pub(super) filename: i64,
        #[prost(int64, tag = "5")]
        pub(super) start_line: i64,
    }
}

/// Writes the profile: two values for each sample (`samples/count` and `cpu/nanoseconds`, or
/// `wall/nanoseconds` where threads were sampled that did not run, the latter the default), labels `pid`, `process`, and where threads are kept apart `tid` and `thread`.
///
/// # Errors
///
/// When the writer fails.
pub fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let mut encoder = GzEncoder::new(out, Compression::default());
    encoder.write_all(&encode(profile).encode_to_vec())?;
    encoder.finish().map(drop)
}

fn encode(profile: &Profile) -> proto::Profile {
    let mut builder = Builder::default();
    let period = signed(profile.meta.period());
    let samples = proto::ValueType {
        r#type: builder.string("samples"),
        unit: builder.string("count"),
    };
    let time = proto::ValueType {
        r#type: builder.string(if profile.meta.wall { "wall" } else { "cpu" }),
        unit: builder.string("nanoseconds"),
    };
    let keys = ["pid", "process", "tid", "thread"].map(|key| builder.string(key));
    let sample = profile
        .samples
        .iter()
        .map(|sample| {
            let count = signed(sample.count);
            let text = |key, str| proto::Label { key, str, num: 0 };
            let number = |key, num: u32| proto::Label {
                key,
                str: 0,
                num: i64::from(num),
            };
            let mut label = vec![
                number(keys[0], sample.process.tgid),
                text(keys[1], builder.string(&sample.process.command)),
            ];
            if let Some(thread) = &sample.thread {
                label.push(number(keys[2], thread.tid));
                label.push(text(keys[3], builder.string(&thread.name)));
            }
            proto::Sample {
                location_id: sample
                    .stack
                    .iter()
                    .rev()
                    .map(|frame| builder.location(frame))
                    .collect(),
                value: vec![count, count.saturating_mul(period)],
                label,
            }
        })
        .collect();
    let comment = vec![
        builder.string(&profile.meta.command),
        builder.string(&format!("{} samples lost", profile.meta.lost)),
    ];
    proto::Profile {
        sample_type: vec![samples, time],
        sample,
        mapping: builder.mappings,
        location: builder.locations,
        function: builder.functions,
        string_table: builder.strings,
        time_nanos: signed(profile.meta.start),
        duration_nanos: i64::try_from(profile.meta.duration.as_nanos()).unwrap_or(i64::MAX),
        period_type: Some(time),
        period,
        comment,
        default_sample_type: time.r#type,
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The tables that samples point into. Ids begin at 1: 0 means none.
struct Builder<'a> {
    strings: Vec<String>,
    string_ids: FxHashMap<String, i64>,
    mappings: Vec<proto::Mapping>,
    mapping_ids: FxHashMap<(FrameKind, &'a str), u64>,
    functions: Vec<proto::Function>,
    function_ids: FxHashMap<FunctionKey<'a>, u64>,
    locations: Vec<proto::Location>,
    location_ids: FxHashMap<&'a Frame, u64>,
}

impl Default for Builder<'_> {
    fn default() -> Self {
        Self {
            // The table's first string is the empty one, by definition.
            strings: vec![String::new()],
            string_ids: FxHashMap::from_iter([(String::new(), 0)]),
            mappings: Vec::new(),
            mapping_ids: FxHashMap::default(),
            functions: Vec::new(),
            function_ids: FxHashMap::default(),
            locations: Vec::new(),
            location_ids: FxHashMap::default(),
        }
    }
}

impl<'a> Builder<'a> {
    fn string(&mut self, text: &str) -> i64 {
        if let Some(&id) = self.string_ids.get(text) {
            return id;
        }
        let id = self.strings.len() as i64;
        self.strings.push(text.to_owned());
        self.string_ids.insert(text.to_owned(), id);
        id
    }

    fn location(&mut self, frame: &'a Arc<Frame>) -> u64 {
        if let Some(&id) = self.location_ids.get(&**frame) {
            return id;
        }
        let location = proto::Location {
            id: self.locations.len() as u64 + 1,
            mapping_id: self.mapping(frame),
            line: vec![proto::Line {
                function_id: self.function(frame),
                line: i64::from(frame.line),
            }],
        };
        self.location_ids.insert(frame, location.id);
        self.locations.push(location);
        self.locations.len() as u64
    }

    fn function(&mut self, frame: &'a Frame) -> u64 {
        if let Some(&id) = self.function_ids.get(&frame.function()) {
            return id;
        }
        let name = match frame.kind {
            FrameKind::Kernel => self.string(&format!("{}_[k]", frame.name)),
            FrameKind::Python | FrameKind::Native => self.string(&frame.name),
        };
        let filename = match frame.kind {
            FrameKind::Python => self.string(&frame.file),
            // Their files are what they are mapped from, not their source.
            FrameKind::Native | FrameKind::Kernel => 0,
        };
        let id = self.functions.len() as u64 + 1;
        self.functions.push(proto::Function {
            id,
            name,
            // With a system name equal to it, Go's pprof takes `<module>` for a template argument, and
            // shows nothing of it.
            system_name: 0,
            filename,
            start_line: i64::from(frame.first_line),
        });
        self.function_ids.insert(frame.function(), id);
        id
    }

    fn mapping(&mut self, frame: &'a Frame) -> u64 {
        let file: &str = match frame.kind {
            FrameKind::Python => "[python]",
            FrameKind::Native if frame.file.is_empty() => "[native]",
            FrameKind::Kernel if frame.file.is_empty() => "[kernel]",
            FrameKind::Native | FrameKind::Kernel => &frame.file,
        };
        if let Some(&id) = self.mapping_ids.get(&(frame.kind, file)) {
            return id;
        }
        let python = frame.kind == FrameKind::Python;
        let id = self.mappings.len() as u64 + 1;
        let filename = self.string(file);
        self.mappings.push(proto::Mapping {
            id,
            filename,
            // Nothing is left for a reader to look up in files it may not have.
            has_functions: true,
            has_filenames: python,
            has_line_numbers: python,
        });
        self.mapping_ids.insert((frame.kind, file), id);
        id
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use std::io::Read;

    use super::*;
    use crate::profile::fixture;

    /// What was written decodes to the same stacks, counts and labels, and every id points at
    /// something.
    #[test]
    fn stacks_counts_and_labels_come_back() {
        let mut bytes = Vec::new();
        write(&fixture::busy(), &mut bytes).unwrap();
        let mut raw = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_end(&mut raw)
            .unwrap();
        let profile = proto::Profile::decode(&raw[..]).unwrap();
        let string = |id: i64| profile.string_table[id as usize].as_str();
        assert_eq!(string(0), "");
        let types: Vec<_> = profile
            .sample_type
            .iter()
            .map(|t| (string(t.r#type), string(t.unit)))
            .collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!(profile.period, 10_000_000);
        let third = &profile.sample[2];
        let names: Vec<&str> = third
            .location_id
            .iter()
            .map(|id| {
                let location = &profile.location[*id as usize - 1];
                assert_eq!(location.id, *id);
                assert!(profile.mapping.iter().any(|m| m.id == location.mapping_id));
                string(profile.function[location.line[0].function_id as usize - 1].name)
            })
            .collect();
        assert_eq!(
            names,
            ["do_syscall_64_[k]", "deflate", "handler", "<module>"]
        );
        assert_eq!(third.value, [2, 20_000_000]);
        let labels: Vec<_> = third
            .label
            .iter()
            .map(|l| (string(l.key), string(l.str), l.num))
            .collect();
        assert_eq!(
            labels,
            [
                ("pid", "", 77),
                ("process", "python app.py", 0),
                ("tid", "", 1),
                ("thread", "worker-1", 0)
            ]
        );
        // Two lines of one function are two locations of it.
        let handlers = profile
            .function
            .iter()
            .filter(|f| string(f.name) == "handler");
        assert_eq!(handlers.map(|f| f.start_line).collect::<Vec<_>>(), [10]);
    }
}
