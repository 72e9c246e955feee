//! A list that comes row by row: JSON and CSV leave as it comes, a table when all is there.
//!
//! What a program reads is the same, byte for byte, as when the list is printed at once.
//! A list that ends early is not closed: no program takes a part for the whole.

use std::io::{BufWriter, Stdout, Write as _};

use serde::Serialize;

use super::text::{Piece, Text};
use super::{Column, Format, Output, csv, inert};
use crate::cli::exit::CliError;

/// Rows of a table at most: more are for programs.
const TABLE: usize = 10_000;

/// A list under way.
pub(crate) struct Rows<'a, T> {
    out: Output,
    to: BufWriter<Stdout>,
    csv: &'a [&'a str],
    /// Rows of the table.
    kept: Vec<T>,
    number: usize,
}

impl<'a, T: Serialize> Rows<'a, T> {
    /// Begins one.
    pub(super) fn begin(out: Output, csv: &'a [&'a str]) -> Result<Self, CliError> {
        let mut rows = Self {
            out,
            to: BufWriter::with_capacity(64 * 1024, std::io::stdout()),
            csv,
            kept: Vec::new(),
            number: 0,
        };
        match out.format {
            Format::Csv => rows.write(&csv::header(csv))?,
            Format::Json => rows.write("[")?,
            Format::Table => {}
        }
        Ok(rows)
    }

    /// The next row.
    pub(crate) fn push(&mut self, row: T) -> Result<(), CliError> {
        self.number += 1;
        match self.out.format {
            Format::Csv => self.write(&csv::row(&row, self.csv)?),
            Format::Json => {
                let text =
                    serde_json::to_string_pretty(&row).map_err(|error| CliError::Other(error.into()))?;
                let text = inert(&text).replace('\n', "\n  ");
                self.write(if self.number == 1 { "\n  " } else { ",\n  " })?;
                self.write(&text)
            }
            Format::Table => {
                if self.kept.len() < TABLE {
                    self.kept.push(row);
                }
                Ok(())
            }
        }
    }

    /// No more rows; `empty` is said to a person when there were none.
    pub(crate) fn end(mut self, columns: &[Column<T>], empty: &str) -> Result<(), CliError> {
        match self.out.format {
            Format::Csv => {}
            Format::Json => self.write(if self.number == 0 { "]\n" } else { "\n]\n" })?,
            Format::Table if self.number == 0 => self.out.text(Text::new().line(empty))?,
            Format::Table => {
                let mut text = Text::new().table(&self.kept, columns);
                if self.number > self.kept.len() {
                    let more = self.number - self.kept.len();
                    let words = format!("and {more} more: filter, or take --output csv or json");
                    text = text.pieces([Piece::dim(words)]);
                }
                self.out.text(text)?;
            }
        }
        self.to.flush().map_err(CliError::Output)
    }

    fn write(&mut self, text: &str) -> Result<(), CliError> {
        self.to.write_all(text.as_bytes()).map_err(CliError::Output)
    }
}
