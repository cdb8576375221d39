//! Ports for servers of others, which are told one and cannot be asked for the one they took.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

/// Below what the kernel gives to those who ask for any port (32768 and more), and above what services have.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// A TCP port of the loopback address that nobody listens at. It stays free: no connection and no listener that asks the kernel
/// for a port is given it, as one could be that the kernel itself named; and of those who call this, hardly two draw the same.
pub fn free_port() -> u16 {
    let draw = || u16::try_from(RandomState::new().hash_one(std::process::id()) % u64::from(COUNT));
    let mut drawn = std::iter::repeat_with(|| FIRST + draw().expect("below 20,000"));
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    drawn.by_ref().take(1000).find(free).expect("one of a thousand ports is free")
}
