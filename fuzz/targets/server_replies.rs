//! What a server says in transmission, given to the client with requests on their way.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sealblk_upstream::fuzzing::server_replies(input));
