//! What tests of several crates share: a model of a disk. Never part of a product.
#![forbid(unsafe_code)]

mod model;

pub use model::{Mismatch, Model};
