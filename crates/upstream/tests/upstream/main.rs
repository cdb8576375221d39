//! The client against servers: ours, nbdkit, one that crashes, and ones that lie.

mod crash;
mod foreign;
mod hostile;
mod rig;
mod shadow;
mod tls;
