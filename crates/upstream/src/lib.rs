//! A block device behind any NBD export: the NBD client.
//!
//! [`UpstreamDevice::open`] connects to an [`ExportUri`] and is then a [`sealblk_block::BlockDevice`] like any
//! other: so a volume's ciphertext can be kept by whatever has an NBD server. Three things are this crate's
//! business and nobody else's:
//!
//! - **The server is not trusted.** Its bytes are bounded and checked; whatever breaks the protocol's rules
//!   ends the connection with an error that names the rule.
//! - **A lost connection is repaired.** Requests without an answer are made again ([`UpstreamOptions`] bounds
//!   for how long), so that a server may be restarted under load.
//! - **Nothing acknowledged as durable is lost.** What the server acknowledged but has not flushed is kept here
//!   until it has (`journal.rs`), and written again, in order, to the server that is there after a lost
//!   connection, before anything else is asked of it.
//!
//! Each connection has a thread of its own (`driver.rs`); lanes hand it owned requests and wait. So lanes may
//! share a connection where the server does not allow several, and dropping a lane's future never cuts a
//! request in two. Unlike the local back ends this one allocates for each request.
//!
//! This crate knows nothing of volumes or keys, and neither logs nor prints.
#![forbid(unsafe_code)]

mod coverage;
mod device;
mod driver;
mod error;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod handshake;
mod job;
mod journal;
mod link;
mod order;
mod replay;
mod reply;
mod request;
mod session;
mod stream;
mod tls;
mod uri;

pub use device::{UpstreamDevice, UpstreamLane, UpstreamOptions};
pub use error::UpstreamError;
pub use uri::{ExportUri, UriError};
