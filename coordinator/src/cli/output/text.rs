//! Lines and tables for a terminal.
//!
//! A [`Piece`] is text with a tone; the text is stripped of control characters
//! when it is rendered, so the only escapes a terminal sees are the tones'.

use std::io::IsTerminal;

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, Width, presets};
use reseal_proto::facts::printable;

use super::Column;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Are colours wanted?
    pub(crate) colour: bool,
    /// Columns; none: lines are as long as they are, as a pipe wants them.
    pub(crate) width: Option<u16>,
}

impl Look {
    /// Of an output stream; `NO_COLOR` and `TERM=dumb` are honoured.
    pub(crate) fn of(stream: &impl IsTerminal) -> Self {
        let terminal = stream.is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            colour: terminal && !plain,
            width: if terminal { Table::new().width().or(Some(100)) } else { None },
        }
    }
}

/// What a piece of text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing special.
    Plain,
    /// A heading or a name.
    Bold,
    /// An aside.
    Dim,
    /// As it should be.
    Good,
    /// Needs a look.
    Warn,
    /// Wrong.
    Bad,
}

/// Text with a tone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Not yet stripped.
    text: String,
    tone: Tone,
}

impl Piece {
    /// Text in a tone.
    pub(crate) fn new(tone: Tone, text: impl ToString) -> Self {
        Self { text: text.to_string(), tone }
    }
    /// Nothing special.
    pub(crate) fn plain(text: impl ToString) -> Self {
        Self::new(Tone::Plain, text)
    }
    /// A heading or a name.
    pub(crate) fn bold(text: impl ToString) -> Self {
        Self::new(Tone::Bold, text)
    }
    /// An aside.
    pub(crate) fn dim(text: impl ToString) -> Self {
        Self::new(Tone::Dim, text)
    }
    /// As it should be.
    pub(crate) fn good(text: impl ToString) -> Self {
        Self::new(Tone::Good, text)
    }
    /// Needs a look.
    pub(crate) fn warn(text: impl ToString) -> Self {
        Self::new(Tone::Warn, text)
    }
    /// Wrong.
    pub(crate) fn bad(text: impl ToString) -> Self {
        Self::new(Tone::Bad, text)
    }
    /// A number that should be 0.
    pub(crate) fn bad_unless_zero(number: u32) -> Self {
        if number == 0 { Self::plain(0) } else { Self::bad(number) }
    }

    fn render(&self, look: Look) -> String {
        let text = printable(&self.text);
        let code = match self.tone {
            _ if !look.colour => return text,
            Tone::Plain => return text,
            Tone::Bold => "1",
            Tone::Dim => "2",
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    fn cell(&self) -> Cell {
        let cell = Cell::new(printable(&self.text));
        match self.tone {
            Tone::Plain => cell,
            Tone::Bold => cell.add_attribute(Attribute::Bold),
            Tone::Dim => cell.add_attribute(Attribute::Dim),
            Tone::Good => cell.fg(Color::Green),
            Tone::Warn => cell.fg(Color::Yellow),
            Tone::Bad => cell.fg(Color::Red),
        }
    }
}

/// Lines and tables, in order.
#[derive(Default)]
#[must_use = "text that is not printed is lost"]
pub(crate) struct Text {
    blocks: Vec<Block>,
}

enum Block {
    Line(Vec<Piece>),
    Fact(&'static str, Piece),
    Table(Box<Table>),
    /// Several lines that were written by us, such as a policy file.
    Verbatim(String),
}

impl Text {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// One line.
    pub(crate) fn line(self, text: impl ToString) -> Self {
        self.pieces([Piece::plain(text)])
    }

    /// One line of several tones.
    pub(crate) fn pieces(mut self, pieces: impl IntoIterator<Item = Piece>) -> Self {
        self.blocks.push(Block::Line(pieces.into_iter().collect()));
        self
    }

    /// "Name      value", aligned with the facts beside it.
    pub(crate) fn fact(self, name: &'static str, value: impl ToString) -> Self {
        self.fact_piece(name, Piece::plain(value))
    }

    /// [`Text::fact`] with a tone; left out when the value is empty.
    pub(crate) fn fact_piece(mut self, name: &'static str, value: Piece) -> Self {
        if !value.text.is_empty() {
            self.blocks.push(Block::Fact(name, value));
        }
        self
    }

    /// A heading with an empty line before it.
    pub(crate) fn heading(self, text: impl ToString) -> Self {
        let before = if self.blocks.is_empty() { self } else { self.line("") };
        before.pieces([Piece::bold(text)])
    }

    /// Lines whose breaks are kept; each line is stripped by itself.
    pub(crate) fn verbatim(mut self, text: impl ToString) -> Self {
        self.blocks.push(Block::Verbatim(text.to_string()));
        self
    }

    /// A table without borders.
    pub(crate) fn table<T>(self, rows: &[T], columns: &[Column<T>]) -> Self {
        self.table_of(&rows.iter().collect::<Vec<&T>>(), columns)
    }

    /// [`Text::table`] of rows that lie apart.
    pub(crate) fn table_of<T>(mut self, rows: &[&T], columns: &[Column<T>]) -> Self {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(columns.iter().map(|(title, _)| Piece::bold(title).cell()));
        for row in rows {
            table.add_row(columns.iter().map(|(_, show)| show(row).cell()));
        }
        if let Some(first) = table.column_mut(0) {
            first.set_padding((0, 1));
        }
        self.blocks.push(Block::Table(Box::new(table)));
        self
    }

    /// More text behind this one.
    pub(crate) fn then(mut self, more: Self) -> Self {
        self.blocks.extend(more.blocks);
        self
    }

    /// As the terminal gets it.
    pub(crate) fn render(self, look: Look) -> String {
        let mut out = String::new();
        let name_width = self
            .blocks
            .iter()
            .filter_map(|block| match block {
                Block::Fact(name, _) => Some(name.len()),
                Block::Line(_) | Block::Table(_) | Block::Verbatim(_) => None,
            })
            .max()
            .unwrap_or_default();
        for block in self.blocks {
            match block {
                Block::Line(pieces) => {
                    out.extend(pieces.iter().map(|piece| piece.render(look)));
                    out.push('\n');
                }
                Block::Fact(name, value) => {
                    let name = Piece::dim(format!("{name:name_width$}")).render(look);
                    out.push_str(&format!("{name}  {}\n", value.render(look)));
                }
                Block::Verbatim(text) => {
                    for line in text.lines() {
                        out.push_str(&printable(line));
                        out.push('\n');
                    }
                }
                Block::Table(mut table) => {
                    match look.width {
                        Some(width) => {
                            table.set_content_arrangement(ContentArrangement::Dynamic);
                            table.set_width(width.max(40));
                            keep_words(&mut table, width);
                        }
                        None => {
                            table.set_content_arrangement(ContentArrangement::Disabled);
                        }
                    }
                    if look.colour {
                        table.enforce_styling();
                    } else {
                        table.force_no_tty();
                    }
                    for line in table.lines() {
                        out.push_str(line.trim_end());
                        out.push('\n');
                    }
                }
            }
        }
        out
    }
}

/// Breaks cells between words, but for words that would take the room of other columns.
fn keep_words(table: &mut Table, width: u16) {
    const LONGEST: usize = 24;
    const SHORTEST: usize = 6;
    let words: Vec<usize> = table.column_iter().map(|column| longest_word(table, column.index)).collect();
    let bounds = |cap: usize| {
        let padded =
            words.iter().enumerate().map(move |(at, word)| word.min(&cap) + if at == 0 { 1 } else { 2 });
        padded.collect::<Vec<_>>()
    };
    let fits = |cap: &usize| bounds(*cap).iter().sum::<usize>() <= usize::from(width);
    if let Some(cap) = (SHORTEST..=LONGEST).rev().find(fits) {
        let bounds = bounds(cap).into_iter().filter_map(|bound| u16::try_from(bound).ok());
        table.set_constraints(bounds.map(|bound| ColumnConstraint::LowerBoundary(Width::Fixed(bound))));
    }
}

/// Characters of the longest word in a column.
fn longest_word(table: &Table, column: usize) -> usize {
    table
        .column_cells_with_header_iter(column)
        .filter_map(|cell| cell.map(Cell::content))
        .flat_map(|content| content.split(' ').map(|word| word.chars().count()).collect::<Vec<_>>())
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Look = Look { colour: false, width: None };

    #[test]
    fn facts_are_aligned() {
        let text = Text::new().fact("Fleet", "demo").fact("Up to", "").fact("Operator", "alice");
        assert_eq!(text.render(PLAIN), "Fleet     demo\nOperator  alice\n");
    }

    #[test]
    fn a_table_is_narrow_and_greppable() {
        let columns: [Column<(&str, u32)>; 2] =
            [("NAME", |row| Piece::plain(row.0)), ("FAILED", |row| Piece::bad_unless_zero(row.1))];
        let text = Text::new().table(&[("web-1", 0), ("web-10", 3)], &columns);
        assert_eq!(text.render(PLAIN), "NAME    FAILED\nweb-1   0\nweb-10  3\n");
    }

    #[test]
    fn words_are_kept_whole_while_there_is_room() {
        let columns: [Column<(&str, &str)>; 2] =
            [("ACTOR", |row| Piece::plain(row.0)), ("WHAT", |row| Piece::plain(row.1))];
        let rows = [("operator/administrator", "some words that will not fit into one line of it")];
        let text = Text::new().table(&rows, &columns).render(Look { colour: false, width: Some(50) });
        assert!(text.contains("\noperator/administrator  some words"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 50), "{text}");
        let rows = [("x".repeat(80), "y".repeat(80))];
        let columns: [Column<(String, String)>; 2] =
            [("A", |row| Piece::plain(&row.0)), ("B", |row| Piece::plain(&row.1))];
        let text = Text::new().table(&rows, &columns).render(Look { colour: false, width: Some(50) });
        assert!(text.lines().all(|line| line.chars().count() <= 50), "{text}");
    }

    #[test]
    fn tones_are_the_only_escapes() {
        let look = Look { colour: true, width: Some(80) };
        let text = Text::new().pieces([Piece::bad("x\x1b[1m"), Piece::plain("y")]);
        assert_eq!(text.render(look), "\x1b[31mx\u{fffd}[1m\x1b[0my\n");
    }
}
