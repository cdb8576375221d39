//! Another process's memory, searched from outside.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::found;

/// Mappings that cannot be read from outside, by what /proc/PID/maps calls them.
const UNREADABLE: &[&str] = &["secretmem", "[vvar", "[vsyscall]", "[io_uring]"];

fn mappings(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).expect("the mappings")
}

/// All memory of a process that can be read from outside, by mapping: what /proc/PID/mem gives root.
pub fn readable_memory(pid: u32) -> Vec<(String, Vec<u8>)> {
    let maps = mappings(pid);
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read another process's memory");
    let mut readable = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with('r'))) {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("an address");
        let mut bytes = vec![0; usize::try_from(number(end) - number(start)).expect("a mapping's length")];
        match memory.read_exact_at(&mut bytes, number(start)) {
            Ok(()) => readable.push((line.to_owned(), bytes)),
            // memfd_secret's pages are out of the kernel's own reach too; the others are the kernel's own.
            Err(_) if UNREADABLE.iter().any(|name| line.contains(name)) => {}
            // What was unmapped meanwhile, as a closed connection's lane is, holds nothing any more.
            Err(_) if !mappings(pid).contains(line) => {}
            Err(error) => panic!("cannot read {line}: {error}"),
        }
    }
    readable
}

/// Which of `needles` are in the memory of a process, by index, and in which mapping.
pub fn in_memory(pid: u32, needles: &[Vec<u8>]) -> Vec<(usize, String)> {
    let memory = readable_memory(pid);
    let holders = memory.iter().flat_map(|(mapping, bytes)| {
        found(bytes, needles).into_iter().map(move |index| (index, mapping.clone()))
    });
    holders.collect()
}
