//! A bridge, and a network namespace per host, with names no other run uses.
//!
//! Fleet number N owns bridge `rslN`, interfaces `rslNv*`, namespaces `rslN-*`
//! and the addresses 10.77.N.0/24. Traffic on the bridge is let through the
//! machine's own packet filter, which Docker closes, by rules that carry the
//! bridge's name and are taken out again.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::{command, run};

/// A bridge and its addresses.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// 1 to 254: the third octet of its addresses, and part of each name.
    pub number: u8,
}

impl Network {
    /// The machine's own address on the bridge: where the coordinator listens.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 1)
    }

    /// The address of the host with this index, from 0.
    pub fn address(self, index: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 11 + index)
    }

    /// The bridge's name.
    pub fn bridge(self) -> String {
        format!("rsl{}", self.number)
    }

    /// The machine's end of a host's cable.
    pub fn cable(self, index: u8) -> String {
        format!("rsl{}v{index}", self.number)
    }

    /// The name of a host's namespace.
    pub fn namespace(self, host: &str) -> String {
        format!("rsl{}-{host}", self.number)
    }

    /// Do addresses or interfaces of this number exist already?
    pub fn taken(self) -> Result<bool> {
        let prefix = format!("10.77.{}.", self.number);
        let routes = run(&mut command("ip", &["-4", "route", "show", "table", "all"]))?;
        Ok(routes.contains(&prefix) || self.bridge_exists())
    }

    fn bridge_exists(self) -> bool {
        Path::new("/sys/class/net").join(self.bridge()).exists()
    }

    /// Makes the bridge and opens the packet filter for it.
    pub fn create(self) -> Result<()> {
        let bridge = self.bridge();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        let address = format!("{}/24", self.gateway());
        ip(&["addr", "add", &address, "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for rule in self.rules() {
            // A chain that the machine does not have needs no opening.
            let _ = iptables("-I", &rule);
        }
        Ok(())
    }

    /// Makes a host's namespace and plugs it into the bridge.
    pub fn plug(self, host: &str, index: u8) -> Result<PathBuf> {
        let (namespace, cable) = (self.namespace(host), self.cable(index));
        ip(&["netns", "add", &namespace])?;
        ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        ip(&["link", "set", &cable, "master", &self.bridge(), "up"])?;
        let inside = |arguments: &[&str]| {
            let mut all = vec!["-n", namespace.as_str()];
            all.extend(arguments);
            ip(&all)
        };
        let address = format!("{}/24", self.address(index));
        inside(&["addr", "add", &address, "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["link", "set", "lo", "up"])?;
        let gateway = self.gateway().to_string();
        inside(&["route", "add", "default", "via", &gateway])?;
        Ok(Path::new("/run/netns").join(namespace))
    }

    /// Takes a host's cable down or up.
    pub fn set_cable(self, index: u8, up: bool) -> Result<()> {
        ip(&["link", "set", &self.cable(index), if up { "up" } else { "down" }])
    }

    /// Namespaces of this fleet that exist, by name.
    pub fn namespaces(self) -> Vec<String> {
        let prefix = format!("rsl{}-", self.number);
        std::fs::read_dir("/run/netns")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(&prefix))
            .collect()
    }

    /// Removes the namespaces, the cables, the bridge and the rules that exist.
    pub fn remove(self) -> Result<()> {
        let mut result = Ok(());
        for namespace in self.namespaces() {
            result = result.and(ip(&["netns", "del", &namespace]));
        }
        if self.bridge_exists() {
            result = result.and(ip(&["link", "del", &self.bridge()]));
        }
        for rule in self.rules() {
            // Each rule once per time it was put in; the loop ends at the first miss.
            while iptables("-D", &rule).is_ok() {}
        }
        result
    }

    fn rules(self) -> Vec<Vec<String>> {
        let bridge = self.bridge();
        let rule = |words: &str| words.split(' ').map(|word| word.replace("BRIDGE", &bridge)).collect();
        vec![
            rule("DOCKER-USER -i BRIDGE -o BRIDGE -j ACCEPT"),
            rule("FORWARD -i BRIDGE -o BRIDGE -j ACCEPT"),
            rule("INPUT -i BRIDGE -j ACCEPT"),
        ]
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(&mut command("ip", arguments)).map(drop)
}

fn iptables(verb: &str, rule: &[String]) -> Result<()> {
    let mut iptables = command("iptables", &["-w", "10", verb]);
    run(iptables.args(rule)).map(drop).context("cannot change the packet filter")
}
