//! Why an export cannot be used: each variant is something the caller decides on.

use std::io;
use std::path::PathBuf;

/// Why an export was not opened, or a connection to it was given up.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody answers there, or the connection broke: later it may work.
    #[error("the NBD server cannot be reached")]
    Unreachable(#[source] io::Error),
    /// It answers too slowly, or not at all: later it may work.
    #[error("the NBD server did not finish the negotiation in time")]
    TimedOut,
    /// The server says no: no such export, TLS required, not for us.
    #[error("the NBD server refused {what}: {why}{}", quoted(text))]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// What its answer means.
        why: &'static str,
        /// What it said in words, made printable; may be empty.
        text: String,
    },
    /// A certificate or key for TLS cannot be used.
    #[error("{}: {what}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// TLS was not agreed on: the server is not who it should be, or does not accept us.
    #[error("TLS with the NBD server failed")]
    Tls(#[source] io::Error),
    /// The server breaks the rules of the protocol.
    #[error("the NBD server broke the protocol: {0}")]
    Malformed(&'static str),
    /// The export is of no use for a volume, or not for what was asked.
    #[error("the NBD export cannot be used: {0}")]
    Unfit(&'static str),
    /// After a lost connection another export was there.
    #[error("the NBD export changed while the connection was lost: {0}")]
    Changed(&'static str),
    /// No thread or runtime for a connection.
    #[error("no thread for an NBD connection")]
    Start(#[source] io::Error),
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" (\"{text}\")") }
}

impl UpstreamError {
    /// Whether the store did not answer, as against answering something unwelcome.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::TimedOut)
    }

    /// The message and those of its causes, from the outermost in.
    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
