//! What a command prints: a table for people, JSON for programs, CSV for spreadsheets.
//!
//! Everything that leaves through here is free of control characters: names
//! come from certificates, labels and hosts, and a terminal would obey them.
//! Commands build rows and lines; nothing else of the CLI writes to standard output.

pub(crate) mod csv;
mod rows;
pub(crate) mod text;

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::exit::CliError;
use rows::Rows;
use text::{Look, Piece, Text};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; field names are stable.
    Json,
    /// For spreadsheets; the columns are JSON field names.
    Csv,
}

/// A column of a table: its title, and what a row shows in it.
pub(crate) type Column<T> = (&'static str, fn(&T) -> Piece);

/// The standard output of one command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// As `--output` said.
    pub(crate) format: Format,
    /// Colour and width of tables.
    pub(crate) look: Look,
}

impl Output {
    /// For this process's standard output.
    pub(crate) fn stdout(format: Format) -> Self {
        Self { format, look: Look::of(&std::io::stdout()) }
    }

    /// Prints a list. `csv` are the paths of the JSON fields that become columns.
    pub(crate) fn list<T: Serialize>(
        &self,
        rows: &[T],
        columns: &[Column<T>],
        csv: &[&str],
        empty: &str,
    ) -> Result<(), CliError> {
        match self.format {
            Format::Json => write(&json(rows)?),
            Format::Csv => write(&csv::render(rows, csv)?),
            Format::Table if rows.is_empty() => self.text(Text::new().line(empty)),
            Format::Table => self.text(Text::new().table(rows, columns)),
        }
    }

    /// Prints a list that comes row by row: programs get each row as it comes. `csv` as in
    /// [`Output::list`].
    pub(crate) fn rows<'a, T: Serialize>(&self, csv: &'a [&'a str]) -> Result<Rows<'a, T>, CliError> {
        Rows::begin(*self, csv)
    }

    /// Prints one thing; `text` is asked only when a person reads.
    pub(crate) fn one<T: Serialize>(
        &self,
        thing: &T,
        csv: &[&str],
        text: impl FnOnce() -> Text,
    ) -> Result<(), CliError> {
        match self.format {
            Format::Json => write(&json(thing)?),
            Format::Csv => write(&csv::render(std::slice::from_ref(thing), csv)?),
            Format::Table => self.text(text()),
        }
    }

    /// Prints text for a person, whatever the format.
    pub(crate) fn text(&self, text: Text) -> Result<(), CliError> {
        write(&text.render(self.look))
    }

    /// Prints one line of newline-delimited JSON.
    pub(crate) fn json_line<T: Serialize + ?Sized>(&self, thing: &T) -> Result<(), CliError> {
        let line = serde_json::to_string(thing).map_err(|error| CliError::Other(error.into()))?;
        write(&format!("{}\n", inert(&line)))
    }
}

/// Writes text for a person to standard error: progress, warnings, questions.
pub(crate) fn aside(text: Text) {
    let rendered = text.render(Look::of(&std::io::stderr()));
    // Nobody is left to tell when standard error is closed.
    let _ = std::io::stderr().write_all(rendered.as_bytes());
}

/// Pretty JSON with a newline at its end.
pub(crate) fn json<T: Serialize + ?Sized>(thing: &T) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(thing).map_err(|error| CliError::Other(error.into()))?;
    Ok(format!("{}\n", inert(&text)))
}

/// Writes bytes to standard output as they are: completions, files, NDJSON.
pub(crate) fn write(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// Are both ends of a conversation a person?
pub(crate) fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// serde_json leaves DEL, C1 and bidirectional controls as they are; inside JSON
/// they can only stand in strings, where an escape means the same.
fn inert(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // What `printable` would replace, except the layout of pretty JSON.
        if c != '\n'
            && reseal_proto::facts::printable(c.encode_utf8(&mut [0; 4])).starts_with('\u{fffd}')
            && c != '\u{fffd}'
        {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Serialize)]
    struct Row {
        name: String,
        labels: std::collections::BTreeMap<String, String>,
    }

    fn safe(text: &str) -> bool {
        text.chars().all(|c| c == '\n' || (!c.is_control() && !('\u{202a}'..='\u{202e}').contains(&c)))
    }

    proptest! {
        #[test]
        fn hostile_strings_never_reach_the_terminal_raw(
            name in "(\\PC|\\p{Cc}|[\u{7f}-\u{9f}\u{202a}-\u{202e}]|\x1b\\[[0-9]{1,3}m){0,40}",
            value in ".{0,10}",
        ) {
            let row = Row { name: name.clone(), labels: [(value, name.clone())].into() };
            let text = json(&row).unwrap();
            prop_assert!(safe(&text), "{text:?}");
            let back: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(back["name"].as_str(), Some(name.as_str()));

            let columns: [Column<Row>; 1] = [("NAME", |row| Piece::plain(&row.name))];
            for width in [None, Some(20)] {
                let look = Look { colour: false, width };
                let table = Text::new().table(&[Row { name: name.clone(), labels: Default::default() }], &columns);
                let table = table.line(&name).pieces([Piece::bad(&name)]).fact("name", &name);
                let table = table.render(look);
                prop_assert!(safe(&table), "{table:?}");
            }
            let csv = csv::render(&[row], &["name", "labels"]).unwrap().replace("\r\n", "\n");
            prop_assert!(safe(&csv), "{csv:?}");
        }
    }

    #[test]
    fn json_is_pretty_and_stable() {
        let row = Row { name: "a\u{9b}1m".into(), labels: [("k".into(), "v".into())].into() };
        assert_eq!(
            json(&row).unwrap(),
            "{\n  \"name\": \"a\\u009b1m\",\n  \"labels\": {\n    \"k\": \"v\"\n  }\n}\n"
        );
    }
}
