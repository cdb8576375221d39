//! Both directions between a process and its key helper.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealblk_kms::fuzzing::key_helper(input));
