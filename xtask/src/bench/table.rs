//! Tables for people, and colours where there is a terminal to show them.

use std::{
    fmt,
    io::{IsTerminal as _, stdout},
};

/// Whether to colour.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// As standard output is: colours on a terminal, unless `NO_COLOR` says otherwise.
    pub fn of_stdout() -> Self {
        Self {
            colour: stdout().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Without colours.
    pub fn plain() -> Self {
        Self { colour: false }
    }

    /// Text that says that all is well.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Text to look at.
    pub fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// A heading.
    pub fn head(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Rows of text in columns: the first one to the left, the others to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this head.
    pub fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()],
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// It as a table of Markdown; nothing where there is a head alone.
    pub fn markdown(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let mut text = String::new();
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        for (n, row) in self.rows.iter().enumerate() {
            for column in 0..columns {
                let cell = row.get(column).map_or("", String::as_str);
                text += &format!("| {} ", cell.replace('|', "\\|"));
            }
            text += "|\n";
            if n == 0 {
                text += &format!("|---|{}\n", "---:|".repeat(columns - 1));
            }
        }
        text
    }

    /// Whether it has a head alone.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }
}

/// The columns that a text takes: its characters, without what colours them.
fn width(text: &str) -> usize {
    let mut width = 0;
    let mut escaped = false;
    for c in text.chars() {
        match c {
            '\x1b' => escaped = true,
            'm' if escaped => escaped = false,
            _ if escaped => {}
            _ => width += 1,
        }
    }
    width
}

/// Nothing where there is a head alone.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return Ok(());
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns)
            .map(|n| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(n))
                    .map(|cell| width(cell))
                    .max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (n, (cell, most)) in row.iter().zip(&widths).enumerate() {
                let space = " ".repeat(most - width(cell));
                match n {
                    0 => line += &format!("{cell}{space}"),
                    _ => line += &format!("  {space}{cell}"),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Markdown has a line under the head, as many cells in each row, and no bar that is none.
    #[test]
    fn as_markdown() {
        let mut table = Table::new(&["name", "µs"]);
        assert_eq!(table.markdown(), "");
        table.row(["a|b".into()]);
        assert_eq!(
            table.markdown(),
            "| name | µs |\n|---|---:|\n| a\\|b |  |\n"
        );
    }

    /// Columns line up, colours count for nothing, and a head alone is not shown.
    #[test]
    fn aligned() {
        let mut table = Table::new(&["name", "µs"]);
        assert_eq!(table.to_string(), "");
        table.row(["a longer one".into(), "1".into()]);
        table.row(["b".into(), "\x1b[31m1000\x1b[0m".into()]);
        assert_eq!(
            table.to_string(),
            "name            µs\na longer one     1\nb             \x1b[31m1000\x1b[0m\n"
        );
    }
}
