//! Which sockets listen on a port inside a container: the kernel's own list.
//!
//! It says from where a port can be dialled that the host cannot reach, that
//! nothing listens at all, and how many sockets share a port (SO_REUSEPORT: a
//! socket per worker), which decides how many connections it takes to meet them
//! all. Read from `/proc/PID/net`, which shows the network namespace of that
//! process; needs to see the container's processes, and nothing is entered.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of either list: listening sockets come first in it, connections follow.
const MOST_BYTES: u64 = 4 * 1024 * 1024;
/// The state "listening" (include/net/tcp_states.h).
const LISTENING: &str = "0A";

/// Addresses that sockets listen on at `port` in the network of process `pid`, one per
/// socket; `None` when that process is not seen.
pub(super) async fn listening(pid: i32, port: u16) -> Option<Vec<IpAddr>> {
    let read = move || {
        let mut found = Vec::new();
        for list in ["tcp", "tcp6"] {
            let file = match File::open(format!("/proc/{pid}/net/{list}")) {
                Ok(file) => file,
                // A kernel without IPv6.
                Err(_) if list == "tcp6" => continue,
                Err(_) => return None,
            };
            let lines = BufReader::new(file.take(MOST_BYTES)).lines().map_while(Result::ok);
            found.extend(
                lines.filter_map(|line| listener(&line)).filter(|one| one.1 == port).map(|one| one.0),
            );
        }
        Some(found)
    };
    tokio::task::spawn_blocking(read).await.ok().flatten()
}

/// How many sockets share the port: those of one address family.
pub(super) fn sharing(listening: &[IpAddr]) -> usize {
    let four = listening.iter().filter(|address| address.is_ipv4()).count();
    four.max(listening.len() - four).max(1)
}

/// Where to dial one of them from within: "any address" by loopback, IPv4 first.
pub(super) fn dialled(listening: &[IpAddr]) -> Option<IpAddr> {
    let first = listening.iter().min_by_key(|address| !address.is_ipv4())?;
    Some(match first {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        // It takes IPv4 too, unless told otherwise; its own loopback is always there.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        address => *address,
    })
}

/// Is that process there? Also `false` when other processes are not seen at all.
pub(super) fn exists(pid: i32) -> bool {
    pid > 0 && std::fs::exists(format!("/proc/{pid}/ns")).unwrap_or(false)
}

/// A line of `/proc/net/tcp` or `tcp6` that is about a listening socket.
fn listener(line: &str) -> Option<(IpAddr, u16)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, _, state) = (words.next()?, words.next()?, words.next()?);
    if state != LISTENING {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits as they lie in memory.
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let address = match address.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let bytes = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)
        }
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn lines_of_the_kernel_are_read() {
        for (line, found) in [
            (
                "   0: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0",
                Some(("0.0.0.0", 443)),
            ),
            ("   1: 0100007F:2328 00000000:0000 0A 0 0", Some(("127.0.0.1", 9000))),
            ("   2: 020011AC:01BB 010011AC:D431 01 0 0", None),
            ("   0: 00000000000000000000000001000000:0019 0:0 0A 0", Some(("::1", 25))),
            ("  sl  local_address rem_address   st tx_queue", None),
            ("", None),
        ] {
            let found = found.map(|(address, port)| (address.parse().unwrap(), port));
            assert_eq!(listener(line), found, "{line}");
        }
    }

    #[tokio::test]
    async fn own_sockets_are_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let pid = i32::try_from(std::process::id()).unwrap();
        let found = listening(pid, port).await.unwrap();
        assert_eq!(found, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        assert_eq!((sharing(&found), dialled(&found)), (1, Some(IpAddr::V4(Ipv4Addr::LOCALHOST))));
        drop(socket);
        assert_eq!(listening(pid, port).await.unwrap(), [] as [IpAddr; 0]);
        assert!(exists(pid) && !exists(0));
        assert_eq!(listening(i32::MAX, port).await, None);
    }

    #[test]
    fn both_families_are_one_worker() {
        let addresses = |list: &[&str]| list.iter().map(|one| one.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(sharing(&addresses(&["0.0.0.0", "::", "0.0.0.0", "::"])), 2);
        assert_eq!(sharing(&[]), 1);
        assert_eq!(dialled(&addresses(&["::", "10.0.0.2"])), Some("10.0.0.2".parse().unwrap()));
        assert_eq!(dialled(&addresses(&["::"])), Some("::1".parse().unwrap()));
        assert_eq!(dialled(&[]), None);
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "[ 0-9A-F:x]{0,80}|.{0,40}") {
            listener(&line);
        }
    }
}
