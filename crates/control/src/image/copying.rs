//! Between a raw image and a served volume, piece by piece; zeros are not moved.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Durability, Lba, SECTOR_BYTES, SectorRange, ZeroMode,
};
use sealblk_upstream::{UpstreamDevice, UpstreamOptions};
use sealblk_volume::VolumeId;

use super::error::ImageError;
use super::served::Told;
use crate::backing::BackingError;
use crate::error::ControlError;
use crate::offline;

/// How much is read and written at once.
const PIECE_BYTES: usize = 1024 * 1024;
/// Zeros are left out in units of this many bytes.
const GRAIN_BYTES: usize = 64 * 1024;
/// How often what was written is made durable.
const FLUSH_EVERY_BYTES: u64 = 64 << 20;
/// The server is a thread of this process: a connection that is lost does not come back.
const RECONNECT: Duration = Duration::from_secs(1);

/// One end of the copying: the volume.
pub(super) struct Served<'a> {
    pub(super) id: VolumeId,
    pub(super) uri: &'a str,
    pub(super) told: &'a Told,
}

impl Served<'_> {
    fn open(&self, read_only: bool) -> Result<UpstreamDevice, ControlError> {
        let options = UpstreamOptions { read_only, reconnect: RECONNECT, ..UpstreamOptions::default() };
        let uri = self.uri.parse().map_err(BackingError::from)?;
        let opened = UpstreamDevice::open(&uri, &options);
        Ok(opened.map_err(|source| ImageError::Unreached { source })?)
    }

    fn failed(&self, doing: &'static str) -> impl Fn(BlockError) -> ControlError + use<> {
        let id = self.id;
        move |source| ControlError::Device { id, doing, source }
    }

    fn tell(&self, done: u64, total: u64) {
        // Nobody listens once serving has failed, which is told then.
        let _ = self.told.send((done, total));
    }

    /// Writes what `image` holds, `image_bytes` long, to the volume, which is zeros. With `fill` zeros are written too, to the
    /// volume's end: one that must not show what is in use.
    pub(super) fn fill(
        &self,
        image: &File,
        path: &Path,
        image_bytes: u64,
        fill: bool,
    ) -> Result<(), ControlError> {
        let device = self.open(false)?;
        let failed = self.failed("importing");
        let read_failed = |source| ImageError::Io { step: "read", path: path.to_owned(), source };
        offline::run(async {
            let lane = device.open_lane().map_err(&failed)?;
            let total = device.geometry().sectors * SECTOR_BYTES as u64;
            let mut buffer = Buffer::new(PIECE_BYTES);
            let (mut at, mut unflushed) = (0, 0);
            while at < total {
                let data = next_data(image, at, image_bytes).map_err(read_failed)?.unwrap_or(total);
                // Pieces begin where they would without holes.
                let data = (data / GRAIN_BYTES as u64 * GRAIN_BYTES as u64).max(at);
                if data > at {
                    let hole = SectorRange { start: sector(at), count: (data - at) / SECTOR_BYTES as u64 };
                    if fill {
                        let kept = ZeroMode::KeepAllocated;
                        lane.zero(hole, kept, Durability::Volatile).await.map_err(&failed)?;
                    }
                    at = data;
                    self.tell(at, total);
                    continue;
                }
                let length = PIECE_BYTES.min(usize::try_from(total - at).unwrap_or(PIECE_BYTES));
                buffer.set_len(length);
                read_padded(image, at, image_bytes, &mut buffer).map_err(read_failed)?;
                for (begin, end) in written(&buffer, fill) {
                    let mut part = Buffer::new(end - begin);
                    part.copy_from_slice(&buffer[begin..end]);
                    let place = sector(at + begin as u64);
                    lane.write(place, part, Durability::Volatile).await.0.map_err(&failed)?;
                    unflushed += (end - begin) as u64;
                }
                if unflushed >= FLUSH_EVERY_BYTES {
                    lane.flush().await.map_err(&failed)?;
                    unflushed = 0;
                }
                at += length as u64;
                self.tell(at, total);
            }
            lane.flush().await.map_err(&failed)
        })?
    }

    /// Reads the volume from its first byte to its last and hands it on in order: pieces of data, and runs of zeros.
    pub(super) fn drain(
        &self,
        take: &mut dyn FnMut(Content<'_>) -> io::Result<()>,
        path: &Path,
    ) -> Result<(), ControlError> {
        let device = self.open(true)?;
        let failed = self.failed("exporting");
        let mut take = |content: Content<'_>| {
            take(content).map_err(|source| ImageError::Io { step: "write", path: path.to_owned(), source })
        };
        offline::run(async {
            let lane = device.open_lane().map_err(&failed)?;
            let sectors = device.geometry().sectors;
            let total = sectors * SECTOR_BYTES as u64;
            let mut buffer = Buffer::new(PIECE_BYTES);
            let mut extents = Vec::with_capacity(64);
            let mut at = 0;
            while at < sectors {
                extents.clear();
                let rest = SectorRange { start: Lba(at), count: sectors - at };
                lane.extents(rest, &mut extents).await.map_err(&failed)?;
                for extent in &extents {
                    let end = (at + extent.count).min(sectors);
                    if extent.allocation.zero {
                        take(Content::Zeros((end - at) * SECTOR_BYTES as u64))?;
                        at = end;
                    }
                    while at < end {
                        let length = PIECE_BYTES
                            .min(usize::try_from((end - at) * SECTOR_BYTES as u64).unwrap_or(PIECE_BYTES));
                        buffer.set_len(length);
                        let read;
                        (read, buffer) = lane.read(Lba(at), buffer).await;
                        read.map_err(&failed)?;
                        take(Content::Data(&buffer))?;
                        at += (length / SECTOR_BYTES) as u64;
                        self.tell(at * SECTOR_BYTES as u64, total);
                    }
                }
            }
            Ok(())
        })?
    }
}

/// What a volume holds next.
pub(super) enum Content<'a> {
    Data(&'a [u8]),
    /// So many bytes.
    Zeros(u64),
}

/// A raw image that is written from its beginning.
pub(super) enum RawOutput {
    /// Zeros become holes.
    Sparse { file: File, at: u64 },
    /// Every byte is written.
    Stream(Box<dyn Write + Send>),
}

impl RawOutput {
    pub(super) fn take(&mut self, content: Content<'_>) -> io::Result<()> {
        match (self, content) {
            (Self::Sparse { at, .. }, Content::Zeros(bytes)) => {
                *at += bytes;
                Ok(())
            }
            (Self::Sparse { file, at }, Content::Data(data)) => {
                for (begin, end) in written(data, false) {
                    file.write_all_at(&data[begin..end], *at + begin as u64)?;
                }
                *at += data.len() as u64;
                Ok(())
            }
            (Self::Stream(out), Content::Data(data)) => out.write_all(data),
            (Self::Stream(out), Content::Zeros(mut bytes)) => {
                let zeros = [0; GRAIN_BYTES];
                while bytes > 0 {
                    let now = usize::try_from(bytes).unwrap_or(GRAIN_BYTES).min(GRAIN_BYTES);
                    out.write_all(&zeros[..now])?;
                    bytes -= now as u64;
                }
                Ok(())
            }
        }
    }

    /// The image is whole: of its full length, and durable.
    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Sparse { file, at } => file.set_len(at).and_then(|()| file.sync_all()),
            Self::Stream(mut out) => out.flush(),
        }
    }
}

fn sector(byte: u64) -> Lba {
    Lba(byte / SECTOR_BYTES as u64)
}

/// Where the image's next data is, at or after `at`; where the file system does not say, everything is data.
fn next_data(image: &File, at: u64, image_bytes: u64) -> io::Result<Option<u64>> {
    if at >= image_bytes {
        return Ok(None);
    }
    match rustix::fs::seek(image, SeekFrom::Data(at)) {
        Ok(data) => Ok((data < image_bytes).then_some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::NOTSUP) => Ok(Some(at)),
        Err(errno) => Err(errno.into()),
    }
}

/// Fills `buffer` from `at`; what is behind the image's end is zeros.
fn read_padded(image: &File, at: u64, image_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
    let there = usize::try_from(image_bytes.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
    let (data, behind) = buffer.split_at_mut(there);
    behind.fill(0);
    image.read_exact_at(data, at)
}

/// The runs of grains that hold something else than zeros, as offsets; all of it if `all`.
fn written(bytes: &[u8], all: bool) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, grain) in bytes.chunks(GRAIN_BYTES).enumerate() {
        let (begin, end) = (index * GRAIN_BYTES, index * GRAIN_BYTES + grain.len());
        if !all && grain.iter().all(|&byte| byte == 0) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.1 == begin => run.1 = end,
            _ => runs.push((begin, end)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grains_with_data_are_written() {
        let mut bytes = vec![0; 4 * GRAIN_BYTES + 512];
        assert_eq!(written(&bytes, false), []);
        assert_eq!(written(&bytes, true), [(0, bytes.len())]);
        for at in [GRAIN_BYTES, 2 * GRAIN_BYTES + 7, 4 * GRAIN_BYTES + 511] {
            bytes[at] = 1;
        }
        assert_eq!(
            written(&bytes, false),
            [(GRAIN_BYTES, 3 * GRAIN_BYTES), (4 * GRAIN_BYTES, 4 * GRAIN_BYTES + 512)]
        );
    }

    #[test]
    fn what_is_behind_an_images_end_is_zeros() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[7; 700], 0).expect("written");
        let mut buffer = vec![9; 1024];
        read_padded(&file, 512, 700, &mut buffer).expect("read");
        assert!(buffer[..188].iter().all(|&byte| byte == 7) && buffer[188..].iter().all(|&byte| byte == 0));
        read_padded(&file, 1024, 700, &mut buffer).expect("nothing to read");
        assert!(buffer.iter().all(|&byte| byte == 0));
    }
}
