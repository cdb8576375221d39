//! Wrapped data keys, backing keys and root keys: any bytes, and good ones that were edited.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealblk_kms::fuzzing::wrapped_keys(input));
