//! The client against servers: ours, nbdkit, one that crashes, and ones that lie.

mod crash;
mod fake;
mod foreign;
mod negotiation;
mod recorded;
mod replies;
mod rig;
mod shadow;
mod tls;
