//! A flamegraph as SVG, drawn by inferno; its script makes search and zoom work in any browser.

use std::io::{self, Write};

use inferno::flamegraph::{
    Options, TextTruncateDirection,
    color::{Color, PaletteMap},
    from_lines,
};

use super::folded::fold;
use crate::profile::{
    FrameKind, Profile,
    label::{Style, write_frame},
};

/// Writes the profile. Python frames are yellow to orange, native ones red, kernel ones blue; a
/// frame of one name has one colour, in this file and in every other.
///
/// # Errors
///
/// When the writer fails. A profile without samples is drawn as an empty one, and is no error.
pub fn write(profile: &Profile, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    let lines: Vec<String> = fold(profile, style)
        .into_iter()
        .map(|(stack, count)| format!("{stack} {count}"))
        .collect();
    let mut palette = palette(profile, style);
    let mut options = Options::default();
    options.title = match profile.meta.wall {
        true => "Wall-clock profile".to_owned(),
        false => "CPU profile".to_owned(),
    };
    options.subtitle = Some(subtitle(profile));
    options.count_name = "samples".to_owned();
    options.deterministic = true;
    options.text_truncate_direction = TextTruncateDirection::Right;
    options.palette_map = Some(&mut palette);
    if lines.is_empty() {
        return write_empty(&subtitle(profile), out);
    }
    // Sorting is left to inferno: it compares whole lines, counts included, byte by byte.
    from_lines(&mut options, lines.iter().map(String::as_str), out)
}

/// inferno takes a profile without samples for a mistake, and draws an error.
fn write_empty(subtitle: &str, out: &mut dyn Write) -> io::Result<()> {
    let text = subtitle
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    write!(
        out,
        r##"<?xml version="1.0" standalone="no"?>
<svg version="1.1" width="1200" height="80" xmlns="http://www.w3.org/2000/svg" font-family="monospace">
<rect width="100%" height="100%" fill="#eeeeee"/>
<text x="600" y="30" font-size="17" text-anchor="middle">CPU profile: no samples</text>
<text x="600" y="56" font-size="12" text-anchor="middle">{text}</text>
</svg>
"##
    )
}

/// `python app.py · 10.0 s · 570 samples at 19 Hz · 0 lost`
fn subtitle(profile: &Profile) -> String {
    let meta = &profile.meta;
    let mut command: String = meta
        .command
        .chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .take(COMMAND_MAX + 1)
        .collect();
    if command.chars().count() > COMMAND_MAX {
        command.pop();
        command.push('…');
    }
    format!(
        "{command} · {:.1} s · {} samples at {} Hz · {} lost",
        meta.duration.as_secs_f64(),
        profile.total(),
        meta.rate,
        meta.lost
    )
}

/// The characters of a command line that the subtitle has room for.
const COMMAND_MAX: usize = 80;

fn palette(profile: &Profile, style: &Style) -> PaletteMap {
    let mut palette = PaletteMap::default();
    let mut text = String::new();
    for frame in profile.samples.iter().flat_map(|sample| &*sample.stack) {
        text.clear();
        write_frame(frame, style, &mut text);
        if palette.get(&text).is_none() {
            palette.insert(&text, color(frame.kind, &text));
        }
    }
    palette
}

/// A colour of the kind's family, chosen by the name alone.
fn color(kind: FrameKind, name: &str) -> Color {
    // FNV-1a: the same on every machine and in every version.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let vary = |base: u8, width: u8, shift: u32| {
        base + u8::try_from((hash >> shift) % u64::from(width)).unwrap_or(0)
    };
    match kind {
        FrameKind::Python => Color {
            r: vary(235, 21, 8),
            g: vary(150, 75, 24),
            b: vary(40, 40, 40),
        },
        FrameKind::Native => Color {
            r: vary(215, 30, 8),
            g: vary(85, 40, 24),
            b: vary(80, 40, 40),
        },
        FrameKind::Kernel => Color {
            r: vary(90, 40, 8),
            g: vary(140, 45, 24),
            b: vary(215, 35, 40),
        },
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use crate::profile::fixture;

    fn svg(profile: &Profile) -> String {
        let mut out = Vec::new();
        write(profile, &Style::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// The same profile gives the same bytes; frames carry their counts and kinds their colours.
    #[test]
    fn a_profile_is_drawn_the_same_each_time() {
        let drawn = svg(&fixture::busy());
        assert_eq!(drawn, svg(&fixture::busy()));
        assert!(drawn.contains("größte_fib (/srv/app/fib.py:4) (11 samples, 28.95%)"));
        // The mark of kernel frames is for colour alone.
        assert!(drawn.contains("do_syscall_64 (2 samples"));
        assert!(drawn.contains("python app.py · 10.0 s · 38 samples at 100 Hz · 3 lost"));
        for (kind, name) in [
            (FrameKind::Python, "handler (/srv/app/main.py:12)"),
            (FrameKind::Native, "deflate"),
            (FrameKind::Kernel, "do_syscall_64_[k]"),
        ] {
            let Color { r, g, b } = color(kind, name);
            assert!(
                drawn.contains(&format!("fill=\"rgb({r},{g},{b})\"")),
                "{name}"
            );
        }
    }

    /// Names out of a traced process cannot become markup.
    #[test]
    fn names_cannot_become_markup() {
        let mut profile = fixture::profile(&[(
            0,
            &[fixture::python(
                "</text><script>alert(1)</script>",
                "a\"&b.py",
                1,
                1,
            )],
            1,
        )]);
        profile.meta.command = "x]]><script>alert(2)</script>".to_owned();
        let drawn = svg(&profile);
        assert!(!drawn.contains("<script>alert"));
        assert!(drawn.contains("&lt;script&gt;alert(1)"));
        assert!(drawn.contains("&lt;script&gt;alert(2)"));
    }

    /// A profile without samples is still a picture that says so.
    #[test]
    fn no_samples_are_drawn_as_such() {
        let drawn = svg(&fixture::profile(&[]));
        assert!(drawn.contains("no samples"));
        assert!(drawn.contains("0 samples at 100 Hz"));
    }
}
