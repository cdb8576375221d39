//! Looking at a process from the kernel's side: its mappings, what can be read of them, and how a copy of the
//! test run as a child ended.
//!
//! A test that needs a process of its own (to crash it, fork it, limit it) starts the test binary again for
//! that one test, with `SUBJECT` in the environment; the same function then plays the subject's part.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unsafe_code, reason = "probing addresses is what these tests are about")]

use std::ffi::c_void;
use std::hint::black_box;
use std::io::{PipeReader, PipeWriter, Read};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Output};

use sealblk_keymem::{Backing, KeyMemError, Secret};

const SUBJECT: &str = "SEALBLK_KEYMEM_SUBJECT";
/// What the kernel copies into a pipe at a time without blocking.
const PIPE_BYTES: usize = 64 * 1024;
const KEY_MASK: u8 = 0x5a;

/// The part this process plays: `None` for the test itself.
pub(crate) fn subject() -> Option<String> {
    std::env::var(SUBJECT).ok()
}

/// Runs the test called `name` again in a process of its own, playing `part`, in the directory `dir`.
pub(crate) fn run_subject(name: &str, part: &str, dir: &Path) -> Output {
    Command::new(std::env::current_exe().expect("the test binary"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(SUBJECT, part)
        .current_dir(dir)
        .output()
        .expect("the test binary runs")
}

/// As [`run_subject`]; the part must end well.
pub(crate) fn expect_subject(name: &str, part: &str) {
    let output = run_subject(name, part, &std::env::temp_dir());
    assert!(output.status.success(), "{part}: {output:#?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{part} did not run: {output:#?}");
}

/// Both kinds of memory, with a name to hand to a subject.
pub(crate) const BACKINGS: [(&str, Backing); 2] =
    [("secret memory", Backing::SecretMemory), ("locked anonymous", Backing::LockedAnonymous)];

/// The kind of memory whose name ends `part`.
pub(crate) fn backing_of(part: &str) -> Backing {
    let named = BACKINGS.into_iter().find(|(name, _)| part.ends_with(name));
    named.expect("the part names a kind of memory").1
}

/// 64 bytes as no other memory holds them: kept masked, unmasked only byte by byte in the scan.
#[derive(Clone)]
pub(crate) struct MaskedKey([u8; 64]);

impl MaskedKey {
    /// A new random key.
    pub(crate) fn random() -> Self {
        let mut masked = [0; 64];
        let mut random = std::fs::File::open("/dev/urandom").expect("random numbers");
        random.read_exact(&mut masked).expect("random numbers");
        Self(masked)
    }

    /// Writes the key, still masked, to a new file.
    pub(crate) fn save(&self, path: &Path) {
        std::fs::write(path, self.0).expect("a new file");
    }

    /// The key that [`save`](Self::save) wrote.
    pub(crate) fn load(path: &Path) -> Self {
        Self(std::fs::read(path).expect("the file").try_into().expect("64 bytes"))
    }

    /// Writes the key itself to `place`.
    pub(crate) fn unmask_to(&self, place: &mut [u8; 64]) {
        for (byte, masked) in place.iter_mut().zip(self.0) {
            *byte = black_box(masked) ^ KEY_MASK;
        }
    }

    /// The key in locked memory.
    pub(crate) fn secret_on(&self, backing: Backing) -> Secret<64> {
        let filled = Secret::init_on(backing, |place| {
            self.unmask_to(place);
            Ok::<_, KeyMemError>(())
        });
        filled.expect("locked memory")
    }

    /// Where in `memory` any aligned quarter of the key begins.
    pub(crate) fn found_in(&self, memory: &[u8]) -> Vec<usize> {
        let mut found = Vec::new();
        for quarter in self.0.chunks_exact(16) {
            let first = quarter[0] ^ KEY_MASK;
            let is_here = |at: &usize| {
                memory[*at] == first
                    && memory[*at..].len() >= quarter.len()
                    && memory[*at..].iter().zip(quarter).all(|(byte, masked)| *byte == masked ^ KEY_MASK)
            };
            found.extend((0..memory.len()).filter(is_here));
        }
        found
    }
}

/// One line of /proc/self/maps.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub(crate) range: Range<usize>,
    pub(crate) access: String,
    pub(crate) name: String,
}

/// The mappings of this process.
pub(crate) fn mappings() -> Vec<Mapping> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    maps.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next().and_then(|range| range.split_once('-')).expect("a range");
            let hex = |text| usize::from_str_radix(text, 16).expect("a hexadecimal address");
            let access = words.next().expect("the access").to_owned();
            Mapping { range: hex(start)..hex(end), access, name: words.nth(3).unwrap_or("").to_owned() }
        })
        .collect()
}

/// The mapping that `address` is in.
pub(crate) fn mapping_at(address: usize) -> Mapping {
    mappings().into_iter().find(|mapping| mapping.range.contains(&address)).expect("the address is mapped")
}

/// The two-letter `VmFlags` (proc_pid_smaps(5)) of the mapping that `address` is in.
pub(crate) fn vm_flags_at(address: usize) -> Vec<String> {
    // One reading of one file: mappings of other threads may join and part between two.
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("/proc/self/smaps");
    let holds_address = |line: &&str| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let hex = |text| usize::from_str_radix(text, 16).ok();
        range.is_some_and(|(start, end)| {
            hex(start).is_some_and(|start| start <= address) && hex(end).is_some_and(|end| address < end)
        })
    };
    let mut lines = smaps.lines().skip_while(|line| !holds_address(line));
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).expect("the address is mapped");
    flags.split_whitespace().map(str::to_owned).collect()
}

/// Reads this process's memory by having the kernel copy it through a pipe: it works wherever a load would, secret
/// memory included, and an address that cannot be read is an error instead of a crash.
pub(crate) struct Probe(PipeReader, PipeWriter);

impl Probe {
    pub(crate) fn new() -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        Self(reader, writer)
    }

    /// The bytes at `address`, up to `buffer`'s length; `None` if they cannot be read.
    pub(crate) fn read<'a>(&mut self, address: usize, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let bytes = buffer.len().min(PIPE_BYTES);
        // SAFETY: write(2) checks the address itself and returns EFAULT; it only reads.
        let written = unsafe { libc::write(self.1.as_raw_fd(), address as *const c_void, bytes) };
        let read = buffer.get_mut(..usize::try_from(written).ok()?).expect("no more than asked for");
        self.0.read_exact(read).expect("what was just written");
        Some(read)
    }

    /// Whether the byte at `address` can be read.
    pub(crate) fn can_read(&mut self, address: usize) -> bool {
        self.read(address, &mut [0]).is_some()
    }

    /// The addresses in all readable memory of this process where a quarter of `key` begins.
    ///
    /// The probe's own buffer is not searched, since it holds what was last looked at.
    pub(crate) fn search(&mut self, key: &MaskedKey) -> Vec<usize> {
        let mut buffer = vec![0; PIPE_BYTES];
        let own = buffer.as_ptr() as usize..buffer.as_ptr() as usize + buffer.len();
        let mut found = Vec::new();
        for mapping in mappings().into_iter().filter(|mapping| mapping.access.starts_with('r')) {
            let mut at = mapping.range.start;
            while at < mapping.range.end {
                let wanted = PIPE_BYTES.min(mapping.range.end - at);
                let Some(memory) = self.read(at, &mut buffer[..wanted]) else { break };
                let hits = key.found_in(memory).into_iter().map(|offset| at + offset);
                found.extend(hits.filter(|address| !own.contains(address)));
                // A quarter may straddle two reads; the last read of a mapping ends it.
                at += if memory.len() < wanted || at + wanted == mapping.range.end {
                    wanted
                } else {
                    wanted - 15
                };
            }
        }
        buffer.fill(0);
        found.sort_unstable();
        found.dedup();
        found
    }
}
