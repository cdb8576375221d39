//! What tests of several crates share: a model of a disk, devices that crash or fail when told, a key service with
//! known keys, inputs for what the fuzz targets check, ports. Never part of a product.
#![forbid(unsafe_code)]

pub mod crash_device;
pub mod fault_device;
pub mod fuzz_input;
mod kms;
mod model;
pub mod nbd_client;
mod ports;

pub use crash_device::CrashDevice;
pub use fault_device::FaultDevice;
pub use kms::FixedKeyKms;
pub use model::{Mismatch, Model};
pub use ports::free_port;
