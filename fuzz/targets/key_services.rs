//! What key services and key programs answer, and the names of their keys.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealblk_kms::fuzzing::key_services(input));
