//! The Network Block Device protocol, server side: a sans-I/O core and the lane that drives it.
//!
//! The core turns bytes into checked values and values into bytes: [`negotiation`] until the client has
//! chosen the export, [`request`] and [`reply`] after, by the terms of a [`session`]. It knows no sockets, clocks or threads, and is what
//! is fuzzed. [`serve_connection`] runs it over a stream and a [`sealblk_block::ByteDevice`];
//! [`Server`] does so for every client of its listeners, each on a thread of its own.
//!
//! This crate knows nothing of keys, ciphers or volumes, and neither logs nor prints: what happened is
//! returned, or told to the [`Events`] that the caller brings.

#![forbid(unsafe_code)]

mod baton;
mod buffers;
mod connection;
pub mod context;
mod context_options;
mod export;
mod histogram;
mod inbox;
mod lane;
mod link;
mod listener;
pub mod negotiation;
mod options;
mod outbox;
mod patience;
pub mod reply;
pub mod request;
mod server;
pub mod session;
mod stall;
mod stats;
mod status;
mod stop;
mod tls;
pub mod wire;

pub use connection::{ConnectionError, Ended, Limits, serve_connection};
pub use context::{MetaContext, StatusExtent};
pub use export::{Export, ExportInfo, UnsendableString, UnusableContext};
pub use histogram::{Bucket, Latencies};
pub use listener::{ConnectedClient, Listener, Peer, Refusal, Users};
pub use server::{ConnectionEvent, Events, ServeReport, Server};
pub use stats::{Kind, KindCounts, ServerCounts, Statistics};
pub use stop::{StopSignal, Stopper};
pub use tls::{TlsClients, TlsError, TlsServer};
