//! Re-encryption of a snapshot's blocks: from a data key, or from none, to another data key. Never to none: an encrypted
//! snapshot has no way to an unencrypted one (r49), and here no type for it.
//!
//! Called by the processes that have the keys in locked memory: the one that makes a copy, and the one that restores a
//! volume under another key.

use bytes::{Bytes, BytesMut};
use sealblk_keymem::DataKey;
use sealblk_snapshot::BLOCK_BYTES;
use sealblk_volume::{CipherError, SectorCipher};

const SECTOR_BYTES: usize = 512;
const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES / SECTOR_BYTES as u64;
/// How much is plaintext at a time: little enough to stay in the nearest cache between the two ciphers.
const PIECE_BYTES: usize = 32 * 1024;

/// What turns a block as it is stored now into the block to store.
///
/// A stored sector whose 512 bytes are all zero is an unwritten one (docs/FORMAT.md, rule 3) and stays that. Every other
/// sector is decrypted, if it was encrypted, and encrypted; so encrypted zeros stay encrypted zeros. The result depends
/// on the keys, the place and the bytes only. May be used from several threads at once.
#[derive(Debug)]
pub struct Reencryption {
    from: Option<SectorCipher>,
    to: SectorCipher,
}

impl Reencryption {
    /// From `from`, or from plaintext, to `to`. The round keys are in locked memory.
    ///
    /// # Errors
    /// A key is unfit for the cipher, or there is no locked memory.
    pub fn new(from: Option<&DataKey>, to: &DataKey) -> Result<Self, CipherError> {
        let from = from.map(SectorCipher::new).transpose()?;
        Ok(Self { from, to: SectorCipher::new(to)? })
    }

    /// What to store in the place of block `index` (of 512 KiB, from 0), which is stored as `stored`. Plaintext of an
    /// encrypted block is in the one buffer that is returned, and has been overwritten by then.
    ///
    /// # Errors
    /// The block cannot be one of a volume.
    pub fn block(&self, index: u64, stored: Bytes) -> Result<Bytes, MisshapenBlock> {
        // The store's own buffer, if nobody else has it.
        let mut block = stored.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared));
        self.block_in_place(index, &mut block)?;
        Ok(block.freeze())
    }

    /// The same, where the block is.
    ///
    /// # Errors
    /// As of [`block`](Self::block); nothing was changed then.
    pub fn block_in_place(&self, index: u64, block: &mut [u8]) -> Result<(), MisshapenBlock> {
        reencrypt_in_place(self.from.as_ref(), &self.to, index, block)
    }
}

/// [`Reencryption::block_in_place`], for who has the ciphers.
pub(crate) fn reencrypt_in_place(
    from: Option<&SectorCipher>,
    to: &SectorCipher,
    index: u64,
    block: &mut [u8],
) -> Result<(), MisshapenBlock> {
    let sectors = (block.len() / SECTOR_BYTES) as u64;
    let whole = block.len().is_multiple_of(SECTOR_BYTES) && sectors <= SECTORS_PER_BLOCK;
    let first = index.checked_mul(SECTORS_PER_BLOCK).filter(|first| first.checked_add(sectors).is_some());
    let (true, Some(mut sector)) = (whole, first) else {
        return Err(MisshapenBlock { index, bytes: block.len() });
    };
    let mut rest = block;
    while let Some(run) = Run::at_start_of(rest) {
        let (piece, after) = rest.split_at_mut(run.bytes);
        if !run.unwritten {
            written_sectors(from, to, sector, piece);
        }
        sector += (run.bytes / SECTOR_BYTES) as u64;
        rest = after;
    }
    Ok(())
}

fn written_sectors(from: Option<&SectorCipher>, to: &SectorCipher, first: u64, sectors: &mut [u8]) {
    let Some(from) = from else { return to.encrypt_in_place(first, sectors) };
    let plaintext = Plaintext(sectors);
    from.decrypt_in_place(first, plaintext.0);
    to.encrypt_in_place(first, plaintext.0);
    std::mem::forget(plaintext);
}

/// Decrypted sectors until they are encrypted again: wiped if it does not come to that.
struct Plaintext<'a>(&'a mut [u8]);

impl Drop for Plaintext<'_> {
    fn drop(&mut self) {
        self.0.fill(0);
        // The buffer is the caller's, who may free it: the zeros are to be seen by somebody.
        std::hint::black_box(&mut *self.0);
    }
}

/// A run of sectors that are all unwritten, or all written; of the latter at most a piece.
struct Run {
    unwritten: bool,
    bytes: usize,
}

impl Run {
    fn at_start_of(block: &[u8]) -> Option<Self> {
        let unwritten = is_unwritten(block.get(..SECTOR_BYTES)?);
        let most = if unwritten { usize::MAX } else { PIECE_BYTES / SECTOR_BYTES };
        let sectors = block.chunks_exact(SECTOR_BYTES).take(most);
        let alike = sectors.take_while(|sector| is_unwritten(sector) == unwritten).count();
        Some(Self { unwritten, bytes: alike * SECTOR_BYTES })
    }
}

fn is_unwritten(sector: &[u8]) -> bool {
    sector == [0; SECTOR_BYTES]
}

/// Not the bytes of a volume's block: not whole sectors, too many of them, or in a place that no volume has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a block with the number {index} and {bytes} bytes is none of a volume's")]
pub struct MisshapenBlock {
    /// Its number.
    pub index: u64,
    /// Its length.
    pub bytes: usize,
}

#[cfg(test)]
mod tests;
