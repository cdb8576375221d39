//! The negotiation, given any bytes in any pieces.

#![no_main]

// Each target uses one function of it.
#[allow(dead_code)]
#[path = "../harness/mod.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|input: &[u8]| harness::options(input));
