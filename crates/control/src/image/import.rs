//! `volume import`: a new volume with an image's content, encrypted on the way.
//!
//! The volume is made beside the others (`importing/`), where no command sees it, attached there, filled and detached; then it
//! takes its place among them in one step. What a killed import leaves is removed by the next.

use std::fs::{self, DirBuilder, File};
use std::io::{Read, Seek};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealblk_nbd::Limits;
use sealblk_volume::{VolumeId, VolumeSize};

use super::copying::Served;
use super::error::ImageError;
use super::format::{BEGINNING_BYTES, ImageFormat};
use super::qemu;
use super::served::while_served;
use crate::attach::AttachVolume;
use crate::create::CreateVolume;
use crate::describe::VolumeDescription;
use crate::endpoints::Endpoints;
use crate::error::ControlError;
use crate::key_watch::KeyLossPolicy;
use crate::pool::{Pool, sync_directory};
use crate::runtime::RuntimeDir;

/// A sector.
const SECTOR_BYTES: u64 = 512;

/// What is imported, and into what.
#[derive(Clone, Debug)]
pub struct ImportVolume {
    /// The image: a file, or of raw images a block device.
    pub image: PathBuf,
    /// Its format; `None`: what its name and its beginning agree on.
    pub format: Option<ImageFormat>,
    /// Size of the volume; `None`: the image's, in whole sectors.
    pub size_bytes: Option<u64>,
    /// The volume: its size is not looked at, and it has no backing of its own.
    pub volume: CreateVolume,
}

/// An image that may be read.
struct Image {
    file: File,
    path: PathBuf,
    format: ImageFormat,
    disk_bytes: u64,
}

impl Pool {
    /// Makes a volume with an image's content. `progress` is told how many of how many bytes are done.
    ///
    /// On an error, or killed at any moment, there is no such volume.
    pub fn import_volume(
        &self,
        runtime: &RuntimeDir,
        request: &ImportVolume,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<VolumeDescription, ControlError> {
        let image = Image::open(&request.image, request.format)?;
        let size = image.volume_size(request.size_bytes)?;
        let staging = self.staging()?;
        let volume = CreateVolume {
            size_bytes: Some(size.bytes()),
            snapshot_id: None,
            backing: None,
            erase: false,
            ..request.volume.clone()
        };
        let created = staging.create_volume(&volume, &mut |_, _| {})?;
        let filled = staging.fill(runtime, created.volume_id, volume.discard, image, progress);
        if let Err(error) = filled {
            // The first error is the one to tell; what is left is found by the next import.
            let _ = staging.delete_volume(created.volume_id);
            return Err(error);
        }
        self.adopt(&staging, created.volume_id)?;
        self.describe_volume(created.volume_id)
    }

    /// Where volumes are until they are whole; without what killed imports left there.
    fn staging(&self) -> Result<Self, ControlError> {
        let directory = self.pool_directory().importing();
        let path = directory.volumes_dir();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| ControlError::Pool { path, source })?;
        let staging = Self::new(directory, Arc::clone(&self.kms));
        for left in staging.volume_ids()? {
            match staging.delete_volume(left) {
                // Somebody else's import, at this moment; or another account's, who will find it.
                Ok(_) | Err(ControlError::VolumeInUse { .. } | ControlError::VolumeNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(staging)
    }

    /// Attaches the new volume, and writes the image into it.
    fn fill(
        &self,
        runtime: &RuntimeDir,
        id: VolumeId,
        blank: bool,
        image: Image,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ControlError> {
        let attachment = self.attach_volume(runtime, &quietly(id, false))?;
        while_served(attachment, progress, move |uri, told| {
            let Image { file, path, format, disk_bytes } = &image;
            match format {
                ImageFormat::Raw => Served { id, uri, told }.fill(file, path, *disk_bytes, !blank),
                format => Ok(qemu::fill(path, *format, *disk_bytes, uri, blank, told)?),
            }
        })
    }

    /// Takes a volume over from where it was made.
    fn adopt(&self, staging: &Self, id: VolumeId) -> Result<(), ControlError> {
        let (from, to) = (staging.directory(id), self.directory(id));
        let path = to.path().to_owned();
        // Not over another volume: rename replaces an empty directory only, and a volume's never is.
        fs::rename(from.path(), &path).map_err(|source| ControlError::Pool { path, source })?;
        sync_directory(&self.volumes_dir())?;
        sync_directory(&staging.volumes_dir())
    }
}

/// An attachment for nobody but this process.
pub(super) fn quietly(volume: VolumeId, read_only: bool) -> AttachVolume {
    AttachVolume {
        volume,
        endpoints: Endpoints::default(),
        read_only,
        caching: None,
        limits: Limits { max_connections: 16, ..Limits::default() },
        snapshot_stall: AttachVolume::SNAPSHOT_STALL,
        metrics: None,
        key_loss: KeyLossPolicy::default(),
    }
}

impl Image {
    /// Opens an image that is whole by itself. Nothing is read in any other format than the one decided on.
    fn open(path: &Path, asked: Option<ImageFormat>) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Io { step: "read", path: path.to_owned(), source };
        let path = fs::canonicalize(path).map_err(failed)?;
        // A named pipe would be waited for.
        let kind = fs::metadata(&path).map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::NotAFile { path });
        }
        let mut file = File::open(&path).map_err(failed)?;
        let mut beginning = Vec::new();
        (&file).take(BEGINNING_BYTES as u64).read_to_end(&mut beginning).map_err(failed)?;
        let format = ImageFormat::decide(asked, &path, &beginning)?;
        format.check_whole(&path, &beginning)?;
        let disk_bytes = match format {
            ImageFormat::Raw => file.seek(std::io::SeekFrom::End(0)).map_err(failed)?,
            format => qemu::disk_bytes(&path, format)?,
        };
        Ok(Self { file, path, format, disk_bytes })
    }

    /// The size of the volume that is made of it.
    fn volume_size(&self, asked: Option<u64>) -> Result<VolumeSize, ControlError> {
        let image_bytes = self.disk_bytes;
        let size_bytes = match asked {
            Some(bytes) => bytes,
            None => image_bytes
                .checked_next_multiple_of(SECTOR_BYTES)
                .unwrap_or(u64::MAX)
                .max(VolumeSize::MIN.bytes()),
        };
        if size_bytes < image_bytes {
            return Err(ImageError::TooLarge { image_bytes, size_bytes }.into());
        }
        Ok(VolumeSize::from_bytes(size_bytes)?)
    }
}
