//! Blank is blank, and everything else is named and made blank on request.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::{Content, erase, inspect};
use crate::StoreError;

const SIZE: u64 = 32 << 20;

fn sparse() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(SIZE).expect("a length");
    file
}

fn look(file: &tempfile::NamedTempFile) -> Content {
    inspect(file.path(), &mut |done, total| assert!(done <= total && total == SIZE)).expect("readable")
}

fn found(what: &str, at: u64) -> Content {
    Content::Found { what: what.to_owned(), at }
}

#[test]
fn holes_and_written_zeros_are_blank() {
    let mut file = sparse();
    assert_eq!(look(&file), Content::Blank);
    file.write_all(&vec![0; 3 << 20]).expect("written");
    assert_eq!(look(&file), Content::Blank);
}

#[test]
fn the_first_byte_that_is_not_zero_is_found_wherever_it_is() {
    for at in [0, 1, 511, 4095, (1 << 20) - 1, 1 << 20, SIZE - 1] {
        let file = sparse();
        file.as_file().write_all_at(&[1], at).expect("written");
        assert_eq!(look(&file), found("data", at));
    }
}

#[test]
fn a_signature_is_named_even_behind_other_data() {
    for (what, at, bytes) in [
        ("LUKS2 encrypted container", 0, &b"LUKS\xba\xbe\x00\x02"[..]),
        ("qcow2 image", 0, b"QFI\xfb\x00\x00\x00\x03"),
        ("GPT partition table", 512, b"EFI PART"),
        ("GPT partition table (backup copy)", SIZE - 512, b"EFI PART"),
        ("MBR partition table or boot sector", 510, b"\x55\xaa"),
        ("Linux RAID (md) member", SIZE - 65536, b"\xfc\x4e\x2b\xa9"),
    ] {
        let file = sparse();
        file.as_file().write_all_at(&[7], 300).expect("written");
        file.as_file().write_all_at(bytes, at).expect("written");
        assert_eq!(look(&file), found(what, at));
    }
}

#[test]
fn real_formatters_are_recognised() {
    let formatters: [(&str, &[&str], &str); 4] = [
        ("mkfs.ext2", &["-q", "-F"], "ext2 file system"),
        ("mkfs.ext3", &["-q", "-F"], "ext3 file system"),
        ("mkfs.ext4", &["-q", "-F"], "ext4 file system"),
        ("mkswap", &["-q"], "swap space"),
    ];
    for (program, arguments, expected) in formatters {
        let file = sparse();
        // Without the program there is nothing to recognise; each is in Debian's base system.
        let Ok(output) = Command::new(program).args(arguments).arg(file.path()).output() else { continue };
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        let Content::Found { what, .. } = look(&file) else { panic!("{program} left it blank") };
        assert_eq!(what, expected);
    }
}

#[test]
fn erasing_leaves_it_blank_and_as_long_as_before() {
    let file = sparse();
    for at in [0, 510, 12345, SIZE - 3] {
        file.as_file().write_all_at(b"old", at).expect("written");
    }
    let mut reports = Vec::new();
    erase(file.path(), &mut |done, total| reports.push((done, total))).expect("erased");
    assert_eq!(look(&file), Content::Blank);
    assert_eq!(file.as_file().metadata().expect("metadata").len(), SIZE);
    assert_eq!(reports.last(), Some(&(SIZE, SIZE)));
}

#[test]
fn an_odd_length_is_looked_at_to_its_last_byte() {
    let file = sparse();
    file.as_file().set_len(1025).expect("a length");
    file.as_file().write_all_at(&[9], 1024).expect("written");
    let content = inspect(file.path(), &mut |_, _| {}).expect("readable");
    assert_eq!(content, found("data", 1024));
    erase(file.path(), &mut |_, _| {}).expect("erased");
    assert_eq!(inspect(file.path(), &mut |_, _| {}).expect("readable"), Content::Blank);
}

#[test]
fn a_directory_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let refused = inspect(directory.path(), &mut |_, _| {});
    assert!(matches!(refused, Err(StoreError::WrongKind { kind: "directory", .. })));
}
