//! Tables of text, whose columns stand under each other.

use std::fmt::Write as _;

/// To which side the cells of a column go.
#[derive(Clone, Copy)]
pub(super) enum Align {
    Left,
    Right,
}

/// Columns under their names, and rows.
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    pub(super) rows: Vec<TableRow>,
}

/// A row, with a cell for each column.
pub(super) struct TableRow {
    /// Whether it is to be seen from afar.
    pub(super) is_bad: bool,
    pub(super) cells: Vec<String>,
}

impl Table {
    /// One without rows.
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// As text. With `colour`, for a terminal.
    pub(super) fn render(&self, colour: bool) -> String {
        let width = |column: usize| {
            let cells = self
                .rows
                .iter()
                .map(|row| row.cells[column].chars().count());
            cells.max().unwrap_or(0).max(self.columns[column].0.len())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut out = String::new();
        let mut write = |cells: &mut dyn Iterator<Item = &str>, style: &str| {
            let mut text = String::new();
            for ((cell, (_, align)), width) in cells.zip(&self.columns).zip(&widths) {
                if !text.is_empty() {
                    text.push_str("  ");
                }
                let _ = match align {
                    Align::Left => write!(text, "{cell:<width$}"),
                    Align::Right => write!(text, "{cell:>width$}"),
                };
            }
            let text = text.trim_end();
            let _ = match (colour, style) {
                (true, style) if !style.is_empty() => writeln!(out, "{style}{text}\x1b[0m"),
                _ => writeln!(out, "{text}"),
            };
        };
        write(&mut self.columns.iter().map(|(name, _)| *name), "\x1b[1m");
        for row in &self.rows {
            let style = if row.is_bad { "\x1b[31m" } else { "" };
            write(&mut row.cells.iter().map(String::as_str), style);
        }
        out
    }
}
