//! Names for what a store may already hold: file systems, containers, images and partition tables, known
//! by magic bytes at fixed places (each from its format's own description).
//!
//! This is help for a human who is about to lose data, not a probe: whatever is not in the table is still
//! found by [`super::inspect`], as `data`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes by their place.
pub(super) trait ReadAt {
    /// Fills `bytes` with what is at `at`.
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, at)
    }
}

/// Magic bytes at an offset: from the start, or from the end where negative.
struct Magic {
    what: &'static str,
    at: i64,
    bytes: &'static [u8],
}

const fn magic(what: &'static str, at: i64, bytes: &'static [u8]) -> Magic {
    Magic { what, at, bytes }
}

/// In the order in which they are believed: what carries another's boot sector comes before it.
const TABLE: &[Magic] = &[
    magic("LUKS1 encrypted container", 0, b"LUKS\xba\xbe\x00\x01"),
    magic("LUKS2 encrypted container", 0, b"LUKS\xba\xbe\x00\x02"),
    // The second header's places (LUKS2 on-disk format, 2.2): found when the first was damaged.
    magic("LUKS2 encrypted container", 0x4000, b"SKUL\xba\xbe\x00\x02"),
    magic("BitLocker encrypted volume", 3, b"-FVE-FS-"),
    magic("XFS file system", 0, b"XFSB"),
    magic("btrfs file system", 0x10040, b"_BHRfS_M"),
    magic(
        "bcachefs or bcache device",
        0x1018,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ),
    magic(
        "bcachefs file system",
        0x1018,
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
    ),
    magic("f2fs file system", 1024, b"\x10\x20\xf5\xf2"),
    magic("swap space", 4096 - 10, b"SWAPSPACE2"),
    magic("swap space", 4096 - 10, b"SWAP-SPACE"),
    magic("hibernation image in swap space", 4096 - 10, b"S1SUSPEND"),
    magic("ZFS pool member", 128 * 1024, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    magic("ZFS pool member", 128 * 1024, b"\x00\x00\x00\x00\x00\xba\xb1\x0c"),
    magic("Linux RAID (md) member", 4096, b"\xfc\x4e\x2b\xa9"),
    magic("Linux RAID (md) member", 0, b"\xfc\x4e\x2b\xa9"),
    magic("Ceph BlueStore device", 0, b"bluestore block device\n"),
    magic("exFAT file system", 3, b"EXFAT   "),
    magic("NTFS file system", 3, b"NTFS    "),
    magic("FAT file system", 82, b"FAT32   "),
    magic("FAT file system", 54, b"FAT16   "),
    magic("FAT file system", 54, b"FAT12   "),
    magic("ReiserFS file system", 0x10034, b"ReIsEr"),
    magic("JFS file system", 0x8000, b"JFS1"),
    magic("GFS2 file system", 0x10000, b"\x01\x16\x19\x70"),
    magic("NILFS2 file system", 1030, b"\x34\x34"),
    magic("EROFS file system", 1024, b"\xe2\xe1\xf5\xe0"),
    magic("APFS container", 32, b"NXSB"),
    magic("HFS+ file system", 1024, b"H+\x00\x04"),
    magic("HFS+ file system", 1024, b"HX\x00\x05"),
    magic("squashfs image", 0, b"hsqs"),
    magic("cramfs image", 0, b"\x45\x3d\xcd\x28"),
    magic("ISO 9660 image", 0x8001, b"CD001"),
    magic("UDF file system", 0x8001, b"BEA01"),
    magic("qcow2 image", 0, b"QFI\xfb"),
    magic("QED image", 0, b"QED\x00"),
    magic("VMDK image", 0, b"KDMV"),
    magic("VMDK image", 0, b"COWD"),
    magic("VMDK description", 0, b"# Disk DescriptorFile"),
    magic("VDI image", 0x40, b"\x7f\x10\xda\xbe"),
    magic("VHDX image", 0, b"vhdxfile"),
    magic("VHD image", 0, b"conectix"),
    magic("VHD image", -512, b"conectix"),
    magic("Parallels image", 0, b"WithoutFreeSpace"),
    magic("gzip archive", 0, b"\x1f\x8b\x08"),
    magic("xz archive", 0, b"\xfd7zXZ\x00"),
    magic("zstd archive", 0, b"\x28\xb5\x2f\xfd"),
    magic("bzip2 archive", 0, b"BZh"),
    magic("LZ4 archive", 0, b"\x04\x22\x4d\x18"),
    magic("zip archive", 0, b"PK\x03\x04"),
    magic("7-Zip archive", 0, b"7z\xbc\xaf\x27\x1c"),
    magic("tar archive", 257, b"ustar"),
    magic("ELF program", 0, b"\x7fELF"),
    magic("PDF document", 0, b"%PDF-"),
    magic("SQLite database", 0, b"SQLite format 3\x00"),
    magic("GPT partition table", 512, b"EFI PART"),
    magic("GPT partition table", 4096, b"EFI PART"),
    magic("GPT partition table (backup copy)", -512, b"EFI PART"),
    magic("GPT partition table (backup copy)", -4096, b"EFI PART"),
];

/// Reserved area of the ext superblock, at byte 1024: its magic and the features that tell its versions.
const EXT_MAGIC_AT: u64 = 1024 + 0x38;

/// What is known to be in a store of `size` bytes, and where its signature is.
pub(super) fn identify(file: &impl ReadAt, size: u64) -> io::Result<Option<(&'static str, u64)>> {
    if let Some(found) = lvm(file, size)? {
        return Ok(Some(found));
    }
    for magic in TABLE {
        let Some(at) = place(magic.at, size) else { continue };
        if holds(file, size, at, magic.bytes)? {
            return Ok(Some((magic.what, at)));
        }
    }
    if let Some(found) = ext(file, size)? {
        return Ok(Some(found));
    }
    if let Some(found) = md_at_end(file, size)? {
        return Ok(Some(found));
    }
    let partitioned = holds(file, size, 510, b"\x55\xaa")?;
    Ok(partitioned.then_some(("MBR partition table or boot sector", 510)))
}

/// The offset meant by a place in the table.
fn place(at: i64, size: u64) -> Option<u64> {
    if at < 0 { size.checked_sub(at.unsigned_abs()) } else { u64::try_from(at).ok() }
}

fn holds(file: &impl ReadAt, size: u64, at: u64, bytes: &[u8]) -> io::Result<bool> {
    let mut found = [0; 32];
    let Some(found) = found.get_mut(..bytes.len()) else { return Ok(false) };
    if at.checked_add(bytes.len() as u64).is_none_or(|end| end > size) {
        return Ok(false);
    }
    file.read_exact_at(found, at)?;
    Ok(found == bytes)
}

/// An LVM2 label is in one of the first four sectors.
fn lvm(file: &impl ReadAt, size: u64) -> io::Result<Option<(&'static str, u64)>> {
    for at in [0, 512, 1024, 1536] {
        if holds(file, size, at, b"LABELONE")? && holds(file, size, at + 24, b"LVM2 001")? {
            return Ok(Some(("LVM2 physical volume", at)));
        }
    }
    Ok(None)
}

/// Versions 0.90 and 1.0 of md's superblock are near the end.
fn md_at_end(file: &impl ReadAt, size: u64) -> io::Result<Option<(&'static str, u64)>> {
    const KIB64: u64 = 64 * 1024;
    let old = (size / KIB64 * KIB64).checked_sub(KIB64);
    let newer = size.checked_sub(8192).map(|at| at / 4096 * 4096);
    for at in [old, newer].into_iter().flatten() {
        if holds(file, size, at, b"\xfc\x4e\x2b\xa9")? {
            return Ok(Some(("Linux RAID (md) member", at)));
        }
    }
    Ok(None)
}

/// ext2, 3 and 4 share a magic; a journal makes ext3, features that ext3 does not know make ext4.
fn ext(file: &impl ReadAt, size: u64) -> io::Result<Option<(&'static str, u64)>> {
    const HAS_JOURNAL: u32 = 0x4;
    const EXT3_INCOMPAT: u32 = 0x2 | 0x4 | 0x10;
    const EXT3_RO_COMPAT: u32 = 0x1 | 0x2 | 0x4;
    if !holds(file, size, EXT_MAGIC_AT, b"\x53\xef")? || size < 2048 {
        return Ok(None);
    }
    let mut features = [[0; 4]; 3];
    file.read_exact_at(features.as_flattened_mut(), 1024 + 0x5c)?;
    let [compatible, incompatible, read_only] = features.map(u32::from_le_bytes);
    let what = if incompatible & !EXT3_INCOMPAT != 0 || read_only & !EXT3_RO_COMPAT != 0 {
        "ext4 file system"
    } else if compatible & HAS_JOURNAL != 0 {
        "ext3 file system"
    } else {
        "ext2 file system"
    };
    Ok(Some((what, EXT_MAGIC_AT)))
}
