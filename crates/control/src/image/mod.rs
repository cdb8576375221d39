//! Disk images: a volume made of one, and one made of a volume.
//!
//! Both go through an attachment like any other, on a Unix socket of this user's: what is read or written there is
//! plaintext, and what is stored is encrypted on the way; there is no file in between. Raw images are read and written
//! here, all other formats by qemu-img, a process of its own that never sees a key (`qemu.rs`).

mod copying;
mod error;
mod export;
mod format;
mod import;
mod qemu;
mod served;

pub use self::error::ImageError;
pub use self::export::{ExportTarget, ExportVolume};
pub use self::format::ImageFormat;
pub use self::import::ImportVolume;
