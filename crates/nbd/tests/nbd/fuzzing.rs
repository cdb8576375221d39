//! What the fuzz targets check (`fuzz/`), on the stable toolchain and with every run of the tests: the corpus, which
//! holds what once went wrong, and bytes from proptest.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sealblk_testkit::fuzz_input::corpus;

use crate::harness;

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
