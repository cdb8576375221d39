//! Writing out what a sparse encrypted volume leaves unwritten, so that a reader that does not know rule 3
//! (dm-crypt: docs/FORMAT.md) sees zeros where the volume shows zeros. Offline; called by `volume materialize`.

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Durability, Lba, Operation, SECTOR_BYTES, SectorRange,
};

use crate::cipher::Cipher;
use crate::piece::{piece_bytes, pieces};
use crate::volume::Volume;

/// How much is read and written at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// How far it has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaterializeProgress {
    /// Bytes looked at, from the volume's start.
    pub done_bytes: u64,
    /// The volume's size.
    pub total_bytes: u64,
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Materialized {
    /// The volume is unencrypted: what is stored is what is read, and there was nothing to do.
    NotEncrypted,
    /// No sector is unwritten any more, and all of it is durable.
    Complete {
        /// How many bytes of encrypted zeros were written; 0 when it had been done before.
        written_bytes: u64,
    },
}

impl<C: Cipher, D: BlockDevice> Volume<C, D> {
    /// Writes encrypted zeros into every sector whose stored bytes are all zero, from the first to the
    /// last, and flushes. Other sectors keep their stored bytes.
    ///
    /// Nobody else may use the volume meanwhile (hold its lock). Memory is bounded; `progress` is told after every
    /// piece of 1 MiB. Stopped at any point, by an error or a crash, the volume reads as before, and the next run
    /// does the rest. Afterwards a TRIM makes unwritten sectors again, unless the volume is `--no-discard`.
    /// Call inside the runtime that [`BlockDevice::open_lane`] asks for.
    pub async fn materialize(
        &self,
        mut progress: impl FnMut(MaterializeProgress),
    ) -> Result<Materialized, BlockError> {
        if !C::ENCRYPTS {
            return Ok(Materialized::NotEncrypted);
        }
        let whole = SectorRange { start: Lba(0), count: self.geometry().sectors };
        let lane = self.device().open_lane()?;
        let custody = self.custody().lane();
        let mut stored = Buffer::new(PIECE_BYTES);
        let mut run = Buffer::new(PIECE_BYTES);
        let mut written_bytes = 0;
        for piece in pieces(whole, PIECE_BYTES) {
            let result;
            stored.set_len(piece_bytes(piece));
            (result, stored) = lane.read(piece.start, stored).await;
            result?;
            for (start, end) in self.unwritten_runs(&stored) {
                let result;
                let first = Lba(piece.start.0 + (start / SECTOR_BYTES) as u64);
                run.set_len(end - start);
                run.copy_from_slice(&stored[start..end]);
                written_bytes +=
                    fill_unwritten(&*custody.borrow(Operation::Zero, first).await?, first, &mut run);
                (result, run) = lane.write(first, run, Durability::Volatile).await;
                result?;
            }
            progress(MaterializeProgress {
                done_bytes: piece.end().byte_offset(),
                total_bytes: whole.bytes(),
            });
            tokio::task::yield_now().await;
        }
        lane.flush().await?;
        Ok(Materialized::Complete { written_bytes })
    }

    fn unwritten_runs<'a>(&self, bytes: &'a [u8]) -> Runs<'a> {
        let unit_bytes = self.geometry().unit_bytes;
        let unit_bytes = usize::try_from(unit_bytes).expect("a unit is at most 65536 bytes");
        Runs { bytes, unit_bytes, at: 0 }
    }
}

fn is_unwritten(sector: &[u8]) -> bool {
    sector.iter().all(|byte| *byte == 0)
}

/// Turns every all-zero sector of `sectors` into encrypted zeros; how many bytes those were.
fn fill_unwritten<C: Cipher>(cipher: &C, first: Lba, sectors: &mut [u8]) -> u64 {
    let mut filled_bytes = 0;
    for (index, sector) in sectors.chunks_exact_mut(SECTOR_BYTES).enumerate() {
        if is_unwritten(sector) {
            cipher.encrypt(Lba(first.0 + index as u64), sector);
            filled_bytes += SECTOR_BYTES as u64;
        }
    }
    filled_bytes
}

/// The runs of device units that hold an unwritten sector, as byte offsets into a piece. On a device of
/// 4096-byte units a run may hold written sectors too; they are written back as they were read.
struct Runs<'a> {
    bytes: &'a [u8],
    unit_bytes: usize,
    at: usize,
}

impl Iterator for Runs<'_> {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        let rest = self.bytes.get(self.at..)?;
        let wanted = |unit: &[u8]| unit.chunks_exact(SECTOR_BYTES).any(is_unwritten);
        let mut units = rest.chunks_exact(self.unit_bytes);
        let start = self.at + units.position(wanted)? * self.unit_bytes;
        let more = units.take_while(|unit| wanted(unit)).count();
        let end = start + (1 + more) * self.unit_bytes;
        self.at = end;
        Some((start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(unwritten: &[usize], sectors: usize, unit_bytes: usize) -> Vec<(usize, usize)> {
        let mut bytes = vec![1; sectors * SECTOR_BYTES];
        for sector in unwritten {
            bytes[sector * SECTOR_BYTES..][..SECTOR_BYTES].fill(0);
        }
        let sectors = |(start, end)| (start / SECTOR_BYTES, end / SECTOR_BYTES);
        Runs { bytes: &bytes, unit_bytes, at: 0 }.map(sectors).collect()
    }

    #[test]
    fn runs_are_the_units_with_an_unwritten_sector() {
        assert_eq!(runs(&[], 8, 512), []);
        assert_eq!(runs(&[0, 1, 4, 7], 8, 512), [(0, 2), (4, 5), (7, 8)]);
        assert_eq!(runs(&[0, 1, 2, 3], 4, 512), [(0, 4)]);
        assert_eq!(runs(&[1, 9, 30], 32, 4096), [(0, 16), (24, 32)]);
    }
}
