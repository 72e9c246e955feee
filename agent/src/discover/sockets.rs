//! Listening TCP sockets in the network of a process: the kernel's own list.
//!
//! `/proc/PID/net/tcp` and `tcp6` (proc(5)) show the sockets of the network that
//! the process lives in; needs to see the containers' processes, and nothing is
//! entered. Blocking. What follows from a socket is for those who ask.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;

/// Of either list: listening sockets come first in it, connections follow. Bytes.
pub const MOST_BYTES: u64 = 4 * 1024 * 1024;
/// The state "listening" (include/net/tcp_states.h).
const LISTENING: &str = "0A";

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// What it is bound to.
    pub address: IpAddr,
    /// In the network of the process.
    pub port: u16,
    /// By which the process that holds it open is known; 0 where the list says none.
    pub inode: u64,
}

/// Sockets that listen in the network of process `pid`, of each list as far as `most_bytes`
/// of it go; `None` when that process is not seen.
pub fn listening(pid: i32, most_bytes: u64) -> Option<Vec<Socket>> {
    let mut found = Vec::new();
    for list in ["tcp", "tcp6"] {
        let file = match File::open(format!("/proc/{pid}/net/{list}")) {
            Ok(file) => file,
            // A kernel without IPv6.
            Err(_) if list == "tcp6" => continue,
            Err(_) => return None,
        };
        let lines = BufReader::new(file.take(most_bytes)).lines().map_while(Result::ok);
        found.extend(lines.filter_map(|line| listener(&line)));
    }
    Some(found)
}

/// The inode of a process's namespace ("net", "pid"); "self" is a process, too.
pub fn namespace(process: &str, kind: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{process}/ns/{kind}")).ok().map(|metadata| metadata.ino())
}

/// Where to dial what is bound there, from within: "any address" by loopback.
pub fn dialled(bound: IpAddr) -> IpAddr {
    match bound {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        // It takes IPv4 too, unless told otherwise; its own loopback is always there.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        address => address,
    }
}

/// A line of a list that is about a listening socket.
pub fn listener(line: &str) -> Option<Socket> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, state) = (*words.get(1)?, *words.get(3)?);
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
    let inode = words.get(9).and_then(|word| word.parse().ok()).unwrap_or(0);
    Some(Socket { address, port, inode })
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
            assert_eq!(listener(line).map(|socket| (socket.address, socket.port)), found, "{line}");
        }
        let four = "   0: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 54321 1 0";
        let read = listener(four).unwrap();
        assert_eq!((read.address.to_string().as_str(), read.port, read.inode), ("0.0.0.0", 443, 54321));
        let six = "   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0";
        assert_eq!(listener(six).unwrap().address.to_string(), "::1");
        assert_eq!(listener(&four.replace(" 0A ", " 01 ")), None);
        for odd in ["x", "0: 0:0 0:0 0A 0 0 0 0 0 0", "  sl  local_address rem_address   st"] {
            assert_eq!(listener(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_nothing() {
        assert_eq!(listening(i32::MAX, MOST_BYTES), None);
        assert_eq!(namespace(&i32::MAX.to_string(), "net"), None);
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "[ 0-9A-F:x]{0,80}|.{0,40}") {
            listener(&line);
        }
    }
}
