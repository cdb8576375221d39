//! Sequences of requests that mostly mean something, beside an array of bytes.

#![no_main]

// Each target uses one function of it.
#[allow(dead_code)]
#[path = "../harness/mod.rs"]
mod harness;

libfuzzer_sys::fuzz_target!(|input: &[u8]| harness::requests(input));
