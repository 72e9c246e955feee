//! Which container listens on which TCP port: the kernel's own lists.
//!
//! `/proc/PID/net/tcp` shows the listening sockets of a process's network. Where
//! a network belongs to one container, so do they; where several share one, or
//! the host's, a socket is whose process holds it open. Nothing is entered and
//! nothing is dialled. Needs to see the containers' processes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::IpAddr;

use crate::discover::Container;
use crate::discover::sockets::{MOST_BYTES, listening, namespace};

/// Processes and open files that are looked through for the owners of sockets.
const MOST_PROCESSES: usize = 20_000;
const MOST_FILES: usize = 20_000;

/// A port that a container listens on, with the addresses it is bound to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// Index into the containers.
    pub container: usize,
    /// In the container's network.
    pub port: u16,
    /// Sorted.
    pub addresses: BTreeSet<IpAddr>,
}

/// The ports of all running containers. Blocking.
pub fn listeners(containers: &[Container]) -> Vec<Listener> {
    let own = namespace("self", "net");
    let mut networks: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, container) in containers.iter().enumerate().filter(|(_, one)| one.pid > 0) {
        if let Some(network) = namespace(&container.pid.to_string(), "net") {
            networks.entry(network).or_default().push(index);
        }
    }
    let mut owners = None;
    let mut found: BTreeMap<(usize, u16), BTreeSet<IpAddr>> = BTreeMap::new();
    for (network, sharers) in &networks {
        let alone = sharers.len() == 1 && own != Some(*network);
        for socket in listening(containers[sharers[0]].pid, MOST_BYTES).unwrap_or_default() {
            let owner = if alone {
                Some(sharers[0])
            } else {
                let owners = owners.get_or_insert_with(|| owners_of_sockets(containers));
                owners.get(&socket.inode).copied()
            };
            if let Some(owner) = owner {
                found.entry((owner, socket.port)).or_default().insert(socket.address.to_canonical());
            }
        }
    }
    let listener = |((container, port), addresses)| Listener { container, port, addresses };
    found.into_iter().map(listener).collect()
}

/// Socket → container, by the open files of the processes in each container.
fn owners_of_sockets(containers: &[Container]) -> HashMap<u64, usize> {
    let mut inside: HashMap<u64, usize> = HashMap::new();
    for (index, container) in containers.iter().enumerate().filter(|(_, one)| one.pid > 0) {
        if let Some(processes) = namespace(&container.pid.to_string(), "pid") {
            inside.insert(processes, index);
        }
    }
    // A container that shares the host's processes has none of its own: only its first is known.
    if let Some(host) = namespace("self", "pid") {
        inside.remove(&host);
    }
    let mut owners = HashMap::new();
    let Ok(all) = fs::read_dir("/proc") else { return owners };
    let processes = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for process in processes.take(MOST_PROCESSES) {
        let first = containers.iter().position(|container| container.pid == process);
        let of = namespace(&process.to_string(), "pid").and_then(|own| inside.get(&own).copied());
        let Some(container) = of.or(first) else { continue };
        let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else { continue };
        for file in files.flatten().take(MOST_FILES) {
            let target = fs::read_link(file.path()).unwrap_or_default();
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            if let Some(inode) = inode.and_then(|text| text.parse().ok()) {
                owners.insert(inode, container);
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_this_process_is_found_and_is_whose_process_holds_it() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let pid = i32::try_from(std::process::id()).unwrap();
        let here = Container { name: "here".into(), pid, ..Container::default() };
        let gone = Container { name: "gone".into(), pid: i32::MAX, ..Container::default() };
        let found = listeners(&[gone, here]);
        let one = found.iter().find(|one| one.port == port).unwrap();
        assert_eq!((one.container, one.addresses.len()), (1, 1));
    }
}
