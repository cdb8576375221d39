//! What can be wrong with a disk image.

use std::io;
use std::path::PathBuf;

use sealblk_upstream::UpstreamError;

use super::format::ImageFormat;
use crate::error::ErrorClass;

/// Why an image was not imported or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each field is in its variant's message")]
pub enum ImageError {
    /// It cannot be read or written.
    #[error("cannot {step} {}", path.display())]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    /// It is neither a file nor, to read, a block device.
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    /// There is a file of the name already.
    #[error("{} exists already; --force replaces it", path.display())]
    Exists { path: PathBuf },
    /// Name and content say different things, and the content may be somebody else's.
    #[error(
        "{} is named like {named} and begins like {found}: --format says which it is (a guest can write any beginning into its own raw disk)",
        path.display()
    )]
    Ambiguous { path: PathBuf, named: ImageFormat, found: ImageFormat },
    /// It is not of the format that was named.
    #[error("{} does not begin as an image of the format {format} does", path.display())]
    OtherFormat { path: PathBuf, format: ImageFormat },
    /// Reading it would read other files of this machine.
    #[error("{} refers to another file ({what}): only images that are whole by themselves are imported", path.display())]
    RefersElsewhere { path: PathBuf, what: &'static str },
    /// The volume is to be smaller than what is to go into it.
    #[error("the image has {image_bytes} bytes, more than the volume's {size_bytes}")]
    TooLarge { image_bytes: u64, size_bytes: u64 },
    /// What reads and writes formats other than raw is not there.
    #[error("qemu-img is needed for images of the format {format}, and was not found: install qemu-utils")]
    NoTool { format: ImageFormat, source: io::Error },
    /// It could not read or write the image.
    #[error("qemu-img could not {step} the image: {message}")]
    Tool { step: &'static str, message: String },
    /// The volume's own server could not be reached.
    #[error("the volume could not be reached")]
    Unreached { source: UpstreamError },
}

impl ImageError {
    /// EC2's code, and what it means for the caller.
    pub(crate) fn verdict(&self) -> (&'static str, ErrorClass) {
        match self {
            Self::Io { step: "read", source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ("InvalidParameterValue", ErrorClass::NotFound)
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                ("UnauthorizedOperation", ErrorClass::Denied)
            }
            Self::NotAFile { .. }
            | Self::Ambiguous { .. }
            | Self::OtherFormat { .. }
            | Self::RefersElsewhere { .. }
            | Self::TooLarge { .. } => ("InvalidParameterValue", ErrorClass::Usage),
            Self::Exists { .. } => ("IncorrectState", ErrorClass::State),
            Self::Io { .. } | Self::NoTool { .. } | Self::Tool { .. } | Self::Unreached { .. } => {
                ("InternalError", ErrorClass::Failed)
            }
        }
    }
}
