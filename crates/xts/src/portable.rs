//! The portable kernel: the `aes` crate's multi-block interface, and tweaks for a whole batch at once.
//!
//! It runs where no kernel in `arch` does, and is what those are compared with. The `aes` crate finds the
//! processor's AES instructions itself (ARMv8's too) and is constant-time without them.
//!
//! Not covered: that crate copies the round keys of the data key to the stack for every batch (in the width of its
//! registers) and leaves them there, and this kernel leaves the tweaks of its last batch there.

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes256, Block};

use crate::SECTOR_BYTES;
use crate::cipher::{Direction, HALF_BYTES};
use crate::sectors::Sectors;
use crate::tweak::{following, times_x_to};

/// Blocks in a sector.
const SECTOR_BLOCKS: usize = SECTOR_BYTES / size_of::<Block>();

/// Sectors whose tweaks are computed together. 16 tweaks and 512 blocks are whole batches for every back end
/// of `aes`, and tweaks and data stay in the L1 cache.
const BATCH_SECTORS: usize = 16;

/// The tweaks `T(n, 0) … T(n, 31)` of one sector, as field elements.
type SectorTweaks = [u128; SECTOR_BLOCKS];

/// `K1` and `K2`, expanded; the `aes` crate wipes them on drop.
pub(crate) struct Keys {
    data: Aes256,
    tweak: Aes256,
}

impl Keys {
    pub(crate) fn expand(data: &[u8; HALF_BYTES], tweak: &[u8; HALF_BYTES]) -> Self {
        Self { data: Aes256::new(data.into()), tweak: Aes256::new(tweak.into()) }
    }
}

/// Encrypts or decrypts `sectors`, the first of which has the tweak value `first_tweak`.
pub(crate) fn run(keys: &Keys, direction: Direction, first_tweak: u128, sectors: Sectors<'_>) {
    let sectors = match sectors {
        Sectors::InPlace(sectors) => sectors,
        Sectors::Apart { from, to } => {
            to.copy_from_slice(from);
            to
        }
    };
    let mut tweak_value = first_tweak;
    let mut tweaks = [[0; SECTOR_BLOCKS]; BATCH_SECTORS];
    for batch in sectors.chunks_mut(BATCH_SECTORS * SECTOR_BYTES) {
        let tweaks = batch_tweaks(&keys.tweak, tweak_value, batch.len() / SECTOR_BYTES, &mut tweaks);
        match direction {
            Direction::Encrypt => encrypt_batch(&keys.data, tweaks, batch),
            Direction::Decrypt => decrypt_batch(&keys.data, tweaks, batch),
        }
        tweak_value = following(tweak_value, BATCH_SECTORS);
    }
}

fn encrypt_batch(key: &Aes256, tweaks: &[SectorTweaks], batch: &mut [u8]) {
    xor_tweaks(tweaks, batch);
    key.encrypt_blocks(as_blocks(batch));
    xor_tweaks(tweaks, batch);
}

fn decrypt_batch(key: &Aes256, tweaks: &[SectorTweaks], batch: &mut [u8]) {
    let unwritten: [bool; BATCH_SECTORS] = {
        let mut sectors = batch.chunks_exact(SECTOR_BYTES);
        std::array::from_fn(|_| sectors.next().is_some_and(is_zero))
    };
    xor_tweaks(tweaks, batch);
    key.decrypt_blocks(as_blocks(batch));
    xor_tweaks(tweaks, batch);
    for (sector, _) in batch.chunks_exact_mut(SECTOR_BYTES).zip(unwritten).filter(|(_, unwritten)| *unwritten)
    {
        sector.fill(0);
    }
}

/// Whether every byte of a sector is zero. Almost always the first 8 bytes already say no.
fn is_zero(sector: &[u8]) -> bool {
    sector.chunks_exact(8).all(|word| word == [0; 8])
}

/// Fills `tweaks` for `count` sectors, the first of which has the tweak value `first`; returns those filled.
fn batch_tweaks<'t>(
    key: &Aes256,
    first: u128,
    count: usize,
    tweaks: &'t mut [SectorTweaks; BATCH_SECTORS],
) -> &'t [SectorTweaks] {
    let mut initial: [Block; BATCH_SECTORS] =
        std::array::from_fn(|index| following(first, index).to_le_bytes().into());
    let initial = &mut initial[..count];
    key.encrypt_blocks(initial);
    for (tweaks, initial) in tweaks.iter_mut().zip(initial.iter()) {
        *tweaks = sector_tweaks(u128::from_le_bytes((*initial).into()));
    }
    &tweaks[..count]
}

/// `T, T·x, … T·x^31`, each computed from `T` itself: independent of each other, not a chain of 31 doublings.
fn sector_tweaks(tweak: u128) -> SectorTweaks {
    std::array::from_fn(|power| times_x_to(tweak, power as u32))
}

fn xor_tweaks(tweaks: &[SectorTweaks], batch: &mut [u8]) {
    let (blocks, _) = batch.as_chunks_mut::<{ size_of::<Block>() }>();
    for (block, tweak) in blocks.iter_mut().zip(tweaks.as_flattened()) {
        *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
    }
}

fn as_blocks(batch: &mut [u8]) -> &mut [Block] {
    Block::slice_as_chunks_mut(batch).0
}
