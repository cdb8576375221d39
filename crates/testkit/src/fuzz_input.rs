//! What the fuzz targets' functions are called with by `cargo test`: the corpus in the tree, and bytes that are the same every
//! time. What is new is found by `scripts/fuzz`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs `check` on every file of a target's corpus, in the order of their names. A panic is followed by the file's name.
pub fn corpus(target: &str, check: fn(&[u8])) {
    let directory = directory(target);
    let entries = std::fs::read_dir(&directory).expect("the corpus is there");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{} has seeds", directory.display());
    for path in files {
        let bytes = read(&path);
        let checked = catch_unwind(AssertUnwindSafe(|| check(&bytes)));
        assert!(checked.is_ok(), "{}", path.display());
    }
}

/// One file of a target's corpus.
pub fn seed(target: &str, name: &str) -> Vec<u8> {
    read(&directory(target).join(name))
}

/// Runs `check` on 6000 inputs of fewer than `most` bytes.
pub fn many(most: usize, check: fn(&[u8])) {
    let mut state = 0x5ea1_b1c0_u64;
    let mut byte = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    for length in (0..most).cycle().take(6000) {
        let input: Vec<u8> = (0..length).map(|_| byte()).collect();
        check(&input);
    }
}
