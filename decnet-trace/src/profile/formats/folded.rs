//! Folded stacks: `outermost;…;innermost count`, a line for each, sorted. What Brendan Gregg's
//! FlameGraph tools, inferno, speedscope and py-spy's `--format raw` share.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use crate::profile::{
    Profile,
    label::{Style, write_stack},
};

/// The stacks as text with their counts, sorted; those that read the same are one.
pub fn fold(profile: &Profile, style: &Style) -> BTreeMap<String, u64> {
    let mut folded = BTreeMap::new();
    let mut text = String::new();
    for sample in &profile.samples {
        text.clear();
        write_stack(sample, style, &mut text);
        match folded.get_mut(&text) {
            Some(count) => *count += sample.count,
            None => {
                folded.insert(text.clone(), sample.count);
            }
        }
    }
    folded
}

/// Writes the profile.
///
/// # Errors
///
/// When the writer fails.
pub fn write(profile: &Profile, style: &Style, out: &mut dyn Write) -> io::Result<()> {
    for (stack, count) in fold(profile, style) {
        writeln!(out, "{stack} {count}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use crate::profile::fixture;

    fn text(profile: &Profile, style: &Style) -> String {
        let mut out = Vec::new();
        write(profile, style, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Lines are sorted, carry lines and counts, and mark kernel frames.
    #[test]
    fn stacks_read_as_py_spys() {
        assert_eq!(
            text(&fixture::busy(), &Style::default()),
            "\
<module> (/srv/app/main.py:40);größte_fib (/srv/app/fib.py:4) 1
<module> (/srv/app/main.py:40);größte_fib (/srv/app/fib.py:4);größte_fib (/srv/app/fib.py:5);größte_fib (/srv/app/fib.py:5) 10
<module> (/srv/app/main.py:40);handler (/srv/app/main.py:12) 5
<module> (/srv/app/main.py:40);handler (/srv/app/main.py:12);deflate;do_syscall_64_[k] 2
<module> (/srv/app/main.py:40);handler (/srv/app/main.py:13);deflate 20
"
        );
    }

    /// By function, the lines of one fall together and their counts add up.
    #[test]
    fn by_function_lines_fall_together() {
        let style = Style {
            by_function: true,
            ..Style::default()
        };
        let mut profile = fixture::busy();
        for sample in &mut profile.samples {
            sample.stack = sample.stack.iter().take(2).cloned().collect();
        }
        assert_eq!(
            text(&profile, &style),
            "\
<module> (/srv/app/main.py:1);größte_fib (/srv/app/fib.py:3) 11
<module> (/srv/app/main.py:1);handler (/srv/app/main.py:10) 27
"
        );
    }

    /// Processes and threads stand at the root where they are asked for.
    #[test]
    fn roots_are_processes_and_threads() {
        let style = Style {
            processes: true,
            threads: true,
            lines: false,
            ..Style::default()
        };
        let profile = fixture::profile(&[(9, &[fixture::native("f", "")], 4)]);
        assert_eq!(
            text(&profile, &style),
            "process 77:\"python app.py\";thread (9): worker-9;f 4\n"
        );
    }
}
