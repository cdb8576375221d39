//! What tests of several crates share: a model of a disk, a key service with known keys. Never part of a product.
#![forbid(unsafe_code)]

mod kms;
mod model;
pub mod nbd_client;

pub use kms::FixedKeyKms;
pub use model::{Mismatch, Model};
