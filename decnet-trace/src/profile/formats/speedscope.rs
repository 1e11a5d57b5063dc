//! The file format of <https://www.speedscope.app>: sampled profiles over one table of frames.
//!
//! Schema: <https://www.speedscope.app/file-format-schema.json>
//! (speedscope, src/lib/file-format-spec.ts).

use std::io::{self, Write};

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::profile::{Frame, FrameKind, Process, Profile, Sample, Thread, label::Style};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    shared: Shared<'a>,
    profiles: Vec<Sampled>,
    name: &'a str,
    active_profile_index: usize,
    exporter: &'static str,
}

#[derive(Serialize)]
struct Shared<'a> {
    frames: Vec<SharedFrame<'a>>,
}

#[derive(Serialize)]
struct SharedFrame<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    file: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    line: u32,
}

fn is_zero(line: &u32) -> bool {
    *line == 0
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sampled {
    r#type: &'static str,
    name: String,
    unit: &'static str,
    start_value: f64,
    end_value: f64,
    samples: Vec<Vec<usize>>,
    weights: Vec<f64>,
}

/// Writes the profile: one profile of it for each process, and each thread where threads are kept
/// apart. Stacks stand in the order in which they were first seen; each is as wide as all its samples
/// together, since equal stacks were counted as one. Frames differ by the line that the style shows.
///
/// # Errors
///
/// When the writer fails.
pub fn write(profile: &Profile, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let mut frames = Frames {
        style,
        list: Vec::new(),
        indices: FxHashMap::default(),
    };
    let seconds = |count: u64| count as f64 / f64::from(profile.meta.rate.max(1));
    let profiles: Vec<Sampled> = by_thread(profile)
        .into_iter()
        .map(|samples| {
            let total = samples.iter().map(|sample| sample.count).sum();
            Sampled {
                r#type: "sampled",
                name: name(&samples[0].process, samples[0].thread.as_ref()),
                unit: "seconds",
                start_value: 0.0,
                end_value: seconds(total),
                samples: samples
                    .iter()
                    .map(|sample| {
                        sample
                            .stack
                            .iter()
                            .map(|frame| frames.index(frame))
                            .collect()
                    })
                    .collect(),
                weights: samples.iter().map(|sample| seconds(sample.count)).collect(),
            }
        })
        .collect();
    let file = File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        shared: Shared {
            frames: frames
                .list
                .iter()
                .map(|&(kind, name, file, line)| SharedFrame {
                    name,
                    file: match kind {
                        FrameKind::Kernel if file.is_empty() => "[kernel]",
                        FrameKind::Python => style.path(file),
                        _ => file,
                    },
                    line,
                })
                .collect(),
        },
        profiles,
        name: &profile.meta.command,
        active_profile_index: 0,
        exporter: concat!("decnet-trace ", env!("CARGO_PKG_VERSION")),
    };
    serde_json::to_writer(out, &file).map_err(io::Error::from)
}

/// A frame as the style tells them apart: kind, name, file, line.
type Shown<'a> = (FrameKind, &'a str, &'a str, u32);

struct Frames<'a> {
    style: &'a Style,
    list: Vec<Shown<'a>>,
    indices: FxHashMap<Shown<'a>, usize>,
}

impl<'a> Frames<'a> {
    fn index(&mut self, frame: &'a Frame) -> usize {
        let shown = (
            frame.kind,
            &*frame.name,
            &*frame.file,
            self.style.line(frame),
        );
        *self.indices.entry(shown).or_insert_with(|| {
            self.list.push(shown);
            self.list.len() - 1
        })
    }
}

/// The samples of each process and thread, in the order in which they were first seen; those with
/// the most samples first.
fn by_thread(profile: &Profile) -> Vec<Vec<&Sample>> {
    let mut groups: FxHashMap<(u32, Option<&Thread>), Vec<&Sample>> = FxHashMap::default();
    for sample in &profile.samples {
        groups
            .entry((sample.process.tgid, sample.thread.as_ref()))
            .or_default()
            .push(sample);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_cached_key(|(key, samples)| {
        let total: u64 = samples.iter().map(|sample| sample.count).sum();
        (
            std::cmp::Reverse(total),
            key.0,
            key.1.map(|thread| thread.tid),
        )
    });
    groups
        .into_iter()
        .map(|(_, mut samples)| {
            samples.sort_by_key(|sample| sample.first);
            samples
        })
        .collect()
}

fn name(process: &Process, thread: Option<&Thread>) -> String {
    let process_name = format!("process {}: {}", process.tgid, process.command);
    match thread {
        Some(thread) => format!("thread {} {} of {process_name}", thread.tid, thread.name),
        None => process_name,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use serde_json::Value;

    use super::*;
    use crate::profile::fixture;

    /// Each thread is a profile; indices point at frames, weights are seconds and add up.
    #[test]
    fn each_thread_is_a_profile() {
        let mut out = Vec::new();
        write(&fixture::busy(), &Style::default(), &mut out).unwrap();
        let file: Value = serde_json::from_slice(&out).unwrap();
        let frames = file["shared"]["frames"].as_array().unwrap();
        let profiles = file["profiles"].as_array().unwrap();
        assert_eq!(profiles.len(), 2);
        let first = &profiles[0];
        assert_eq!(
            first["name"],
            "thread 1 worker-1 of process 77: python app.py"
        );
        assert_eq!(first["endValue"], 0.27);
        let weights: f64 = first["weights"]
            .as_array()
            .unwrap()
            .iter()
            .map(|w| w.as_f64().unwrap())
            .sum();
        assert!((weights - 0.27).abs() < 1e-9);
        let stack: Vec<&str> = first["samples"][2]
            .as_array()
            .unwrap()
            .iter()
            .map(|index| {
                frames[index.as_u64().unwrap() as usize]["name"]
                    .as_str()
                    .unwrap()
            })
            .collect();
        assert_eq!(stack, ["<module>", "handler", "deflate", "do_syscall_64"]);
        let handler = frames.iter().find(|f| f["name"] == "handler").unwrap();
        assert_eq!(handler["file"], "/srv/app/main.py");
        assert_eq!(handler["line"], 12);
    }

    /// By function, the lines of one are one frame.
    #[test]
    fn by_function_lines_are_one_frame() {
        let frames = |by_function| {
            let style = Style {
                by_function,
                ..Style::default()
            };
            let mut out = Vec::new();
            write(&fixture::busy(), &style, &mut out).unwrap();
            let file: Value = serde_json::from_slice(&out).unwrap();
            let frames = file["shared"]["frames"].as_array().unwrap();
            let handlers = frames.iter().filter(|frame| frame["name"] == "handler");
            handlers
                .map(|frame| frame["line"].as_u64())
                .collect::<Vec<_>>()
        };
        assert_eq!(frames(false), [Some(12), Some(13)]);
        assert_eq!(frames(true), [Some(10)]);
    }

    /// Without samples the file is still whole.
    #[test]
    fn no_samples_make_a_whole_file() {
        let mut out = Vec::new();
        write(&fixture::profile(&[]), &Style::default(), &mut out).unwrap();
        let file: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(file["profiles"].as_array().unwrap().len(), 0);
    }
}
