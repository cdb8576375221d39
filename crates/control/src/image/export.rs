//! `volume export`: an image with a volume's content, in plaintext.
//!
//! It gets its name when it is whole and durable, and is its owner's alone (0600).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use sealblk_volume::VolumeId;

use super::copying::{Content, RawOutput, Served};
use super::error::ImageError;
use super::format::ImageFormat;
use super::import::quietly;
use super::qemu;
use super::served::while_served;
use crate::error::ControlError;
use crate::pool::{Pool, sync_directory};
use crate::runtime::RuntimeDir;

/// What is exported.
#[derive(Clone, Debug)]
pub struct ExportVolume {
    /// The volume, which nobody has attached.
    pub volume: VolumeId,
    /// The image's format.
    pub format: ImageFormat,
    /// Whether a file that is there already is replaced.
    pub force: bool,
}

/// Where the image goes.
pub enum ExportTarget {
    /// To a file.
    File(PathBuf),
    /// To a stream, every byte of it. Raw images only.
    Stream(Box<dyn Write + Send>),
}

impl Pool {
    /// Writes an image of a volume: of its plaintext, if it is encrypted. `progress` is told how many of how many bytes
    /// are done. The volume is attached meanwhile, to read only.
    ///
    /// On an error, or killed at any moment, there is no file of the name, or the one that was there before.
    pub fn export_volume(
        &self,
        runtime: &RuntimeDir,
        request: &ExportVolume,
        target: ExportTarget,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ControlError> {
        let ExportVolume { volume: id, format, force } = *request;
        let size_bytes = self.describe_volume(id)?.size_bytes.bytes();
        match target {
            ExportTarget::Stream(out) => {
                let attachment = self.attach_volume(runtime, &quietly(id, true))?;
                while_served(attachment, progress, move |uri, told| {
                    raw(&Served { id, uri, told }, RawOutput::Stream(out), Path::new("-"))
                })
            }
            ExportTarget::File(path) => {
                let image = NewImage::at(&path, force)?;
                let attachment = self.attach_volume(runtime, &quietly(id, true))?;
                let (partial, file) = (image.partial.clone(), image.file.try_clone());
                while_served(attachment, progress, move |uri, told| {
                    let failed = |source| ImageError::Io { step: "write", path: partial.clone(), source };
                    match format {
                        ImageFormat::Raw => {
                            let file = file.map_err(failed)?;
                            raw(&Served { id, uri, told }, RawOutput::Sparse { file, at: 0 }, &partial)
                        }
                        format => Ok(qemu::drain(uri, &partial, format, size_bytes, told)?),
                    }
                })?;
                image.publish(force)
            }
        }
    }
}

fn raw(served: &Served<'_>, mut output: RawOutput, path: &Path) -> Result<(), ControlError> {
    served.drain(&mut |content: Content<'_>| output.take(content), path)?;
    output.finish().map_err(|source| ImageError::Io { step: "write", path: path.to_owned(), source }.into())
}

/// An image that has not got its name yet; removed when dropped.
struct NewImage {
    path: PathBuf,
    partial: PathBuf,
    file: File,
}

impl NewImage {
    fn at(path: &Path, force: bool) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Io { step: "write", path: path.to_owned(), source };
        let path = std::path::absolute(path).map_err(failed)?;
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.is_file() => return Err(ImageError::NotAFile { path }),
            Ok(_) if !force => return Err(ImageError::Exists { path }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let mut partial = name.to_owned();
        partial.push(format!(".partial-{}", std::process::id()));
        let partial = path.with_file_name(partial);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&partial);
        let file = file.map_err(|source| ImageError::Io { step: "write", path: partial.clone(), source })?;
        Ok(Self { path, partial, file })
    }

    fn publish(self, force: bool) -> Result<(), ControlError> {
        let failed = |source| ImageError::Io { step: "write", path: self.path.clone(), source };
        // QEMU has written it through a file of its own.
        self.file.sync_all().map_err(failed)?;
        let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &self.partial, CWD, &self.path, flags) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(ImageError::Exists { path: self.path.clone() }.into()),
            Err(errno) => return Err(failed(errno.into()).into()),
        }
        self.path.parent().map_or(Ok(()), sync_directory)
    }
}

impl Drop for NewImage {
    fn drop(&mut self) {
        // Published, it has another name; else there is an error to tell already.
        let _ = fs::remove_file(&self.partial);
    }
}
