//! A repository in memory and in a directory, by what is done with it.

#[path = "../rig/mod.rs"]
mod rig;

mod copying;
mod deleting;
mod resuming;
mod snapshots;
mod together;
mod verifying;
