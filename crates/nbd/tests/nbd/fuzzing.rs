//! What the fuzz targets check (`fuzz/`), on the stable toolchain and with every run of the tests: the corpus, which
//! holds what once went wrong, and bytes from proptest.

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::harness;

/// Runs `check` on every file of a target's corpus.
fn corpus(target: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .expect("the corpus is there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(files.len() >= 5, "{} has seeds", dir.display());
    for file in files {
        let bytes = std::fs::read(&file).expect("a file of the corpus");
        let checked = std::panic::catch_unwind(|| check(&bytes));
        assert!(checked.is_ok(), "{}", file.display());
    }
}

#[test]
fn the_corpus_of_options_keeps_the_promises() {
    corpus("options", harness::options);
}

#[test]
fn the_corpus_of_option_sequences_agrees_with_the_model() {
    corpus("sequence", harness::sequence);
}

#[test]
fn the_corpus_of_transmission_keeps_the_promises() {
    corpus("transmission", harness::transmission);
}

#[test]
fn the_corpus_of_requests_agrees_with_an_array() {
    corpus("requests", harness::requests);
}

/// The same bytes every time: what is new is found by `scripts/fuzz`.
fn same_every_time(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(0x5ea1_b1c0), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(same_every_time(10_000))]

    #[test]
    fn any_sequence_of_options_agrees_with_the_model(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        harness::sequence(&bytes);
    }
}

proptest! {
    #![proptest_config(same_every_time(2000))]

    #[test]
    fn any_sequence_of_requests_agrees_with_an_array(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        harness::requests(&bytes);
    }
}
