//! Where the servers of a test listen: an address of this process alone, so that tests that run
//! beside one another never take each other's ports.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};

/// Below the ports that the kernel gives to outgoing connections (`net.ipv4.ip_local_port_range`).
const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 32_000;

static NEXT_PORT: AtomicU16 = AtomicU16::new(FIRST_PORT);

/// A loopback address that no other running process gets: 127.64.0.0/10 with this process's ID (22
/// bits at most: `PID_MAX_LIMIT` in the kernel's include/linux/threads.h) as its end.
pub fn address() -> Ipv4Addr {
    let [_, high, middle, low] = (std::process::id() & 0x003f_ffff).to_be_bytes();
    Ipv4Addr::new(127, 64 | high, middle, low)
}

/// The next port of [`address`]; each is given once. One that a left-over server of an earlier
/// process with the same ID still holds is passed over.
pub fn next_port() -> Result<u16> {
    let is_free = |port: &u16| TcpListener::bind((address(), *port)).is_ok();
    std::iter::repeat_with(|| NEXT_PORT.fetch_add(1, Ordering::Relaxed))
        .take_while(|port| *port < LAST_PORT)
        .find(is_free)
        .with_context(|| format!("looking for a free port of {}", address()))
}

/// The URL of a port of [`address`] without TLS.
pub fn url(port: u16) -> String {
    format!("http://{}:{port}", address())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_and_held_ones_are_passed_over() {
        let first = next_port().unwrap();
        let held = TcpListener::bind((address(), first + 1)).unwrap();
        let second = next_port().unwrap();
        assert!(
            address().is_loopback() && second > first + 1,
            "{first} {second}"
        );
        drop(held);
        assert!(next_port().unwrap() > second);
    }
}
