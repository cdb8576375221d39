//! A block device behind any NBD export: the NBD client.
#![forbid(unsafe_code)]
