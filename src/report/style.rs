//! How text looks: its colour, its width, the plural of a count.

use anstyle::{AnsiColor, Effects};

use super::Etcdctl;

/// A colour, or bold.
pub(super) type Ink = anstyle::Style;

pub(super) const RED: Ink = AnsiColor::Red.on_default();
pub(super) const GREEN: Ink = AnsiColor::Green.on_default();
pub(super) const YELLOW: Ink = AnsiColor::Yellow.on_default();
pub(super) const CYAN: Ink = AnsiColor::Cyan.on_default();
pub(super) const BOLD: Ink = Ink::new().effects(Effects::BOLD);

/// How a plan is printed.
#[derive(Debug, Clone, Copy)]
pub struct Style<'s> {
    /// With colour.
    pub color: bool,
    /// How many columns a line has.
    pub width: usize,
    /// How suggested commands reach the store.
    pub etcdctl: &'s Etcdctl,
}

impl Style<'_> {
    pub(super) fn paint(self, ink: Ink, text: &str) -> String {
        if self.color {
            format!("{ink}{text}{ink:#}")
        } else {
            text.to_owned()
        }
    }

    /// Breaks a text of ours at the width, between words.
    pub(super) fn wrapped(self, text: &str) -> String {
        self.filled(text, "", "  ")
    }

    /// The same, with the indents of the first line and of the others.
    pub(super) fn filled(self, text: &str, first: &str, others: &str) -> String {
        let options = textwrap::Options::new(self.width)
            .break_words(false)
            .word_splitter(textwrap::WordSplitter::NoHyphenation)
            .initial_indent(first)
            .subsequent_indent(others);
        textwrap::fill(text, options)
    }
}

/// `1 server`, `2 servers`.
pub(super) fn number(number: usize, word: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {word}{ending}")
}
