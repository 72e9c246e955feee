//! Which sockets listen on a port inside a container: the kernel's own list.
//!
//! It says from where a port can be dialled that the host cannot reach, that
//! nothing listens at all, and how many sockets share a port (SO_REUSEPORT: a
//! socket per worker), which decides how many connections it takes to meet them
//! all. Read by [`crate::discover::sockets`].

use std::net::IpAddr;

use crate::discover::sockets;

/// Addresses that sockets listen on at `port` in the network of process `pid`, one per
/// socket; `None` when that process is not seen.
pub(super) async fn listening(pid: i32, port: u16) -> Option<Vec<IpAddr>> {
    let read = move || {
        let all = sockets::listening(pid, sockets::MOST_BYTES)?;
        Some(all.into_iter().filter(|socket| socket.port == port).map(|socket| socket.address).collect())
    };
    tokio::task::spawn_blocking(read).await.ok().flatten()
}

/// How many sockets share the port: those of one address family.
pub(super) fn sharing(listening: &[IpAddr]) -> usize {
    let four = listening.iter().filter(|address| address.is_ipv4()).count();
    four.max(listening.len() - four).max(1)
}

/// Where to dial one of them from within, IPv4 first.
pub(super) fn dialled(listening: &[IpAddr]) -> Option<IpAddr> {
    listening.iter().min_by_key(|address| !address.is_ipv4()).map(|bound| sockets::dialled(*bound))
}

/// Is that process there? Also `false` when other processes are not seen at all.
pub(super) fn exists(pid: i32) -> bool {
    pid > 0 && std::fs::exists(format!("/proc/{pid}/ns")).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

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
}
