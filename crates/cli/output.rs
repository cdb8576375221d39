//! The only place that writes to stdout and stderr: results, notes and errors, as text or as JSON.

use std::error::Error;
use std::io::{self, IsTerminal, Write};

use sealblk_control::with_causes;
use serde::Serialize;
use serde_json::json;

use crate::args::OutputMode;

/// Where results, notes and progress go, and in what form.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    mode: OutputMode,
    quiet: bool,
}

impl Output {
    /// An output as the command line wants it.
    pub(crate) fn new(mode: OutputMode, quiet: bool) -> Self {
        Self { mode, quiet }
    }

    /// Writes a result: `document` for programs, or else `text` for people. A reader that has gone away
    /// (`sealblk volume list | head -1`) is no failure.
    pub(crate) fn result(&self, document: &impl Serialize, text: impl FnOnce() -> String) -> io::Result<()> {
        self.write(document, text, io::stdout().is_terminal()).map(|_| ())
    }

    /// Writes one of several results, each on a line of its own, also as JSON. `false`: the reader has gone away,
    /// and more is not wanted.
    pub(crate) fn continuing(
        &self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> io::Result<bool> {
        self.write(document, text, false)
    }

    /// Whether somebody read it.
    fn write(
        &self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
        pretty: bool,
    ) -> io::Result<bool> {
        let written = match self.mode {
            OutputMode::Text => line(&text()),
            OutputMode::Json => line(&if pretty {
                serde_json::to_string_pretty(document)
            } else {
                serde_json::to_string(document)
            }?),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Writes one line to stdout, whatever the mode (attach's ready line, a completion script).
    #[expect(clippy::unused_self, reason = "an Output in hand is the licence to print")]
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        line(text)
    }

    /// Writes a note for people to stderr, unless there is to be quiet.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            // Nothing can be done about a stderr that is gone.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Writes a note that a JSON result says already.
    pub(crate) fn text_note(&self, text: &str) {
        if self.mode == OutputMode::Text {
            self.note(text);
        }
    }

    /// Whether progress bars are wanted: there is a person to see them.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }
}

fn line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.trim_end_matches('\n').as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Writes an error to stderr: with all its causes as one line, or as EC2 shapes an error.
pub(crate) fn report(mode: OutputMode, code: &str, error: &dyn Error) {
    let message = with_causes(error);
    let text = match mode {
        OutputMode::Text => format!("error: {message}"),
        OutputMode::Json => json!({ "Error": { "Code": code, "Message": message } }).to_string(),
    };
    // Nothing can be done about a stderr that is gone; the exit code still tells.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A table with aligned columns, a header line first; numbers are as wide as their column and stand right.
pub(crate) fn table(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(header.get(column).map(|name| name.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let head: Vec<String> = header.iter().map(|&name| name.to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let cells: Vec<String> =
            row.iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, &width))| {
                    if right.contains(&column) {
                        format!("{cell:>width$}")
                    } else {
                        format!("{cell:<width$}")
                    }
                })
                .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Names and values, one pair a line, the values aligned.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        text.push_str(&format!("{:<width$}  {value}\n", format!("{name}:")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_right() {
        let rows =
            vec![vec!["vol-1".to_owned(), "1 GiB".to_owned()], vec!["v".to_owned(), "10 GiB".to_owned()]];
        let text = table(&["VOLUME", "SIZE"], &[1], &rows);
        assert_eq!(text, "VOLUME    SIZE\nvol-1    1 GiB\nv       10 GiB\n");
    }

    #[test]
    fn an_error_is_shown_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open the pool")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("disk on fire"));
        assert_eq!(with_causes(&error), "cannot open the pool: disk on fire");
    }
}
