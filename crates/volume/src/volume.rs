//! A volume: plaintext above, ciphertext below. Knows nothing of records, keys or NBD: `open.rs` makes it
//! once the key is proven, an NBD lane reads and writes it.

use std::cell::RefCell;
use std::sync::Arc;

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Completion, Durability, Extent, Geometry, Lba, Operation,
    SectorRange, ZeroMode,
};

use crate::cipher::Cipher;
use crate::custody::{Custody, LaneCustody};
use crate::growth::VolumeGrowth;
use crate::meter::{CipherMeter, CipherStatistics};
use crate::piece::{piece_bytes, pieces};

/// How many bytes of encrypted zeros are made and written at once.
const ZEROS_BYTES: usize = 256 * 1024;

/// A device whose sectors are stored through a cipher. One per attachment.
pub struct Volume<C: Cipher, D: BlockDevice> {
    custody: Arc<Custody<C>>,
    statistics: CipherStatistics,
    device: D,
    /// All but the size.
    geometry: Geometry,
    growth: VolumeGrowth,
    discard: bool,
}

impl<C: Cipher, D: BlockDevice> Volume<C, D> {
    /// The first bytes of `device`, as many as `growth` says, which has them in whole units: the caller checked.
    pub(crate) fn new(cipher: C, device: D, growth: VolumeGrowth, discard: bool) -> Self {
        let geometry = device.geometry();
        let sectors = growth.sectors();
        assert!(sectors <= geometry.sectors, "a volume lies within its device");
        assert!(
            Lba(sectors).byte_offset().is_multiple_of(geometry.unit_bytes.into()),
            "a volume is whole units of its device"
        );
        let (custody, statistics) = (Arc::new(Custody::new(cipher)), CipherStatistics::default());
        Self { custody, statistics, device, geometry, growth, discard }
    }

    /// Where the stored bytes are.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// What the cipher does in all lanes, for anybody to read at any time. Without a cipher all zeros.
    pub fn cipher_statistics(&self) -> CipherStatistics {
        self.statistics.clone()
    }

    /// What grows it.
    pub fn growth(&self) -> VolumeGrowth {
        self.growth.clone()
    }

    /// Who has what turns them into plaintext.
    pub(crate) fn custody(&self) -> &Arc<Custody<C>> {
        &self.custody
    }
}

impl<C: Cipher, D: BlockDevice> std::fmt::Debug for Volume<C, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("encrypts", &C::ENCRYPTS)
            .field("geometry", &self.geometry())
            .field("discard", &self.discard)
            .finish_non_exhaustive()
    }
}

impl<C: Cipher, D: BlockDevice> BlockDevice for Volume<C, D> {
    type Lane = VolumeLane<C, D::Lane>;

    fn geometry(&self) -> Geometry {
        Geometry { sectors: self.growth.sectors(), ..self.geometry }
    }

    fn open_lane(&self) -> Result<Self::Lane, BlockError> {
        Ok(VolumeLane {
            custody: self.custody.lane(),
            meter: self.statistics.meter(),
            // Before the device's lane, which then has room for it: a volume grows from below.
            sectors: self.growth.sectors(),
            device: self.device.open_lane()?,
            discard: self.discard,
            spare: RefCell::new(None),
        })
    }
}

/// One thread's way to a volume.
pub struct VolumeLane<C, L> {
    custody: LaneCustody<C>,
    meter: CipherMeter,
    device: L,
    sectors: u64,
    discard: bool,
    /// A buffer for encrypted zeros, kept between requests; volumes that discard never make one.
    spare: RefCell<Option<Buffer>>,
}

impl<C, L> VolumeLane<C, L> {
    /// Ranges are checked where they enter. Checked again because the device may be longer than the
    /// volume, and what lies behind it is not this volume's.
    fn assert_inside(&self, range: SectorRange) {
        let end = range.start.0.checked_add(range.count);
        assert!(end.is_some_and(|end| end <= self.sectors), "a request lies within the volume");
    }
}

impl<C: Cipher, L: BlockLane> VolumeLane<C, L> {
    /// Waits until there is a key; an error says that there will be none. For requests that read or change what the
    /// volume holds without the cipher.
    async fn admitted(&self, operation: Operation, at: Lba) -> Result<(), BlockError> {
        if C::ENCRYPTS { self.custody.borrow(operation, at).await.map(drop) } else { Ok(()) }
    }

    async fn encrypt(&self, operation: Operation, first: Lba, sectors: &mut [u8]) -> Result<(), BlockError> {
        if C::ENCRYPTS {
            let cipher = self.custody.borrow(operation, first).await?;
            self.meter.count(sectors.len(), || cipher.encrypt(first, sectors));
        }
        Ok(())
    }

    async fn decrypt(&self, first: Lba, sectors: &mut [u8]) -> Result<(), BlockError> {
        if C::ENCRYPTS {
            let cipher = self.custody.borrow(Operation::Read, first).await?;
            self.meter.count(sectors.len(), || cipher.decrypt(first, sectors));
        }
        Ok(())
    }

    /// Writes encrypted zeros: what WRITE_ZEROES is on a volume that shows the store no unused sector.
    async fn write_zeros(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        match mode {
            ZeroMode::MayUnmap | ZeroMode::KeepAllocated => {}
            ZeroMode::FastOnly | ZeroMode::FastKeepAllocated => {
                return Err(BlockError::Unsupported { operation: Operation::Zero });
            }
        }
        let mut buffer = self.spare.take().unwrap_or_else(|| Buffer::new(ZEROS_BYTES));
        let mut result = Ok(());
        for piece in pieces(range, ZEROS_BYTES) {
            buffer.set_len(piece_bytes(piece));
            buffer.fill(0);
            result = self.encrypt(Operation::Zero, piece.start, &mut buffer).await;
            if result.is_err() {
                break;
            }
            (result, buffer) = self.device.write(piece.start, buffer, Durability::Volatile).await;
            if result.is_err() {
                break;
            }
            // A long range of writes that never wait would keep the lane's other requests waiting.
            tokio::task::yield_now().await;
        }
        self.spare.replace(Some(buffer));
        result?;
        match durability {
            Durability::Volatile => Ok(()),
            // One flush at the end costs less than forcing every piece through.
            Durability::Durable => self.device.flush().await,
        }
    }
}

impl<C: Cipher, L: BlockLane> BlockLane for VolumeLane<C, L> {
    async fn read(&self, at: Lba, buffer: Buffer) -> Completion {
        self.assert_inside(SectorRange::of_bytes(at, buffer.len()));
        let (mut result, mut buffer) = self.device.read(at, buffer).await;
        // After a failed read the buffer holds nobody knows what: there is nothing to decrypt.
        if result.is_ok() {
            result = self.decrypt(at, &mut buffer).await;
        }
        (result, buffer)
    }

    async fn write(&self, at: Lba, mut buffer: Buffer, durability: Durability) -> Completion {
        self.assert_inside(SectorRange::of_bytes(at, buffer.len()));
        if let Err(error) = self.encrypt(Operation::Write, at, &mut buffer).await {
            return (Err(error), buffer);
        }
        self.device.write(at, buffer, durability).await
    }

    async fn zero(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.assert_inside(range);
        self.admitted(Operation::Zero, range.start).await?;
        if self.discard {
            // Stored zeros are an unwritten sector, which reads as zeros, encrypted or not.
            self.device.zero(range, mode, durability).await
        } else if C::ENCRYPTS {
            self.write_zeros(range, mode, durability).await
        } else {
            self.device.zero(range, keeping_allocated(mode), durability).await
        }
    }

    async fn discard(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        self.assert_inside(range);
        self.admitted(Operation::Discard, range.start).await?;
        if self.discard { self.device.discard(range, durability).await } else { Ok(()) }
    }

    /// Needs no key: what was acknowledged becomes durable whether or not there is one.
    async fn flush(&self) -> Result<(), BlockError> {
        self.device.flush().await
    }

    /// What the device knows holds for the plaintext: where stored bytes are certainly zero, the sector is
    /// unwritten and reads as zeros. Zeros that were written through the cipher are data here.
    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        self.assert_inside(range);
        self.admitted(Operation::Extents, range.start).await?;
        self.device.extents(range, extents).await
    }
}

/// The mode that gives no space back.
fn keeping_allocated(mode: ZeroMode) -> ZeroMode {
    match mode {
        ZeroMode::MayUnmap | ZeroMode::KeepAllocated => ZeroMode::KeepAllocated,
        ZeroMode::FastOnly | ZeroMode::FastKeepAllocated => ZeroMode::FastKeepAllocated,
    }
}
