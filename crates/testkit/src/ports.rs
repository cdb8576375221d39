//! Ports for servers of others, which are told one and cannot be asked for the one they took.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below what the kernel gives to those who ask for any port (32768 and more), and above what services have.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// The next one's number: each process begins elsewhere.
static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| {
    let random = RandomState::new().hash_one(std::process::id()) % u64::from(COUNT);
    AtomicU32::new(random.try_into().expect("below 20,000"))
});

/// A TCP port of the loopback address that nobody listens at. It stays free until it is used: no connection and no listener that
/// asks the kernel for a port is given it, and this process is told none twice.
pub fn free_port() -> u16 {
    let draw = || {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % u32::from(COUNT);
        FIRST + u16::try_from(number).expect("below 20,000")
    };
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    std::iter::repeat_with(draw).take(1000).find(free).expect("one of a thousand ports is free")
}
