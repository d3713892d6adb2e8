//! Tables for people: aligned columns, no wider than the output.

use std::io::{self, Write};

use super::style::{BOLD, Ink, Style};
use crate::text::escaped;

/// The least width of a shortened column, in characters.
const NARROWEST: usize = 8;

/// The space between two columns.
const GAP: &str = "  ";

/// One row: its cells, and their colour.
pub(super) struct Row {
    /// As many as the table has columns.
    pub(super) cells: Vec<String>,
    /// `None` for the terminal's own.
    pub(super) ink: Option<Ink>,
}

/// Prints a table. Where it is too wide, columns are shortened, in the order of `shortened`.
///
/// # Errors
/// Those of `out`.
pub(super) fn print(
    out: &mut dyn Write,
    style: Style,
    head: &[&str],
    shortened: &[usize],
    rows: &[Row],
) -> io::Result<()> {
    let head = head.iter().map(|text| (*text).to_owned()).collect();
    let head = Row {
        cells: head,
        ink: Some(BOLD),
    };
    let rows = || std::iter::once(&head).chain(rows);
    let mut widths = vec![0; head.cells.len()];
    for row in rows() {
        for (width, cell) in widths.iter_mut().zip(&row.cells) {
            *width = (*width).max(textwrap::core::display_width(&escaped(cell)));
        }
    }
    let gaps = GAP.len() * widths.len().saturating_sub(1);
    for column in shortened {
        let too_much = (widths.iter().sum::<usize>() + gaps).saturating_sub(style.width);
        let width = &mut widths[*column];
        *width = (*width).min(NARROWEST.max(width.saturating_sub(too_much)));
    }
    for row in rows() {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(&row.cells) {
            let cell = fitted(&escaped(cell), *width);
            let blanks = width.saturating_sub(textwrap::core::display_width(&cell));
            line += &cell;
            line += &" ".repeat(blanks);
            line += GAP;
        }
        let line = line.trim_end();
        match row.ink {
            Some(ink) => writeln!(out, "{}", style.paint(ink, line))?,
            None => writeln!(out, "{line}")?,
        }
    }
    Ok(())
}

/// A text in so many columns at most; an ellipsis stands for what does not fit.
fn fitted(text: &str, width: usize) -> String {
    if textwrap::core::display_width(text) <= width {
        return text.to_owned();
    }
    let mut fitted = String::new();
    for char in text.chars() {
        fitted.push(char);
        if textwrap::core::display_width(&fitted) >= width {
            fitted.pop();
            break;
        }
    }
    fitted + "…"
}
