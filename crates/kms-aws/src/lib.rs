//! AWS KMS as a key provider, in a helper program of its own.
#![forbid(unsafe_code)]
