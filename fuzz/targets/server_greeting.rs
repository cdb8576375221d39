//! What a server says up to transmission, given to the client.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealblk_upstream::fuzzing::server_greeting(input));
