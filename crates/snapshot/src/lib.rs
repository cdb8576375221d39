//! Immutable snapshots in an object store: full and incremental, lazy restore.
#![forbid(unsafe_code)]
