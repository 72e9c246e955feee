//! Traffic, captured on the bridge and decrypted with the keys that one side logged.
//!
//! Only a test build logs TLS keys, into the file that `SSLKEYLOGFILE` names.
//! A search in what comes out proves something only if the same search finds
//! what must be there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::machine;
use crate::process::{Daemon, command, run, wait_until};

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    daemon: Daemon,
    file: PathBuf,
    port: u16,
}

impl Capture {
    /// Captures a TCP port on an interface; returns once packets are seen.
    pub fn start(interface: &str, port: u16, directory: &Path) -> Result<Self> {
        machine::ensure(machine::CAPTURE)?;
        let (file, log) = (directory.join("wire.pcap"), directory.join("tcpdump.log"));
        let filter = format!("tcp port {port}");
        let mut tcpdump =
            command("tcpdump", &["-i", interface, "--immediate-mode", "-s", "0", "-U", "-Z", "root", "-w"]);
        tcpdump.arg(&file).arg(&filter);
        let mut daemon = Daemon::start("tcpdump", &tcpdump, &log)?;
        wait_until("tcpdump to listen", Duration::from_secs(20), || {
            daemon.check()?;
            let said = std::fs::read_to_string(&log)?;
            ensure!(said.contains("listening on"), "{said}");
            Ok(())
        })?;
        Ok(Self { daemon, file, port })
    }

    /// Ends the capture and decrypts every connection of it: what the two sides said, one
    /// after the other, as bytes.
    pub fn decrypted(mut self, keys: &Path) -> Result<Vec<Vec<u8>>> {
        // What is on its way from the kernel is written before tcpdump ends.
        self.daemon.stop(Duration::from_secs(10));
        let words = ["-n", "-r"];
        let option = format!("tls.keylog_file:{}", keys.display());
        let decode = format!("tcp.port=={},tls", self.port);
        let tshark = |rest: &[&str]| {
            let mut tshark = command("tshark", &words);
            tshark.arg(&self.file).args(["-o", &option, "-d", &decode]).args(rest);
            run(&mut tshark)
        };
        let list = tshark(&["-T", "fields", "-e", "tcp.stream"])?;
        let last = list.lines().filter_map(|line| line.trim().parse::<u32>().ok()).max();
        let last = last.context("nothing was captured")?;
        let follow: Vec<String> =
            (0..=last).flat_map(|n| ["-z".to_owned(), format!("follow,tls,raw,{n}")]).collect();
        let mut rest = vec!["-q"];
        rest.extend(follow.iter().map(String::as_str));
        Ok(streams(&tshark(&rest)?))
    }
}

/// tshark frames each connection with a line of `=`; the lines with hex digits are what was
/// said, those of the server indented.
fn streams(text: &str) -> Vec<Vec<u8>> {
    text.split("Follow: tls,raw")
        .skip(1)
        .map(|stream| {
            let lines = stream.lines().skip(1).map(str::trim);
            lines.filter_map(|line| hex::decode(line).ok()).flatten().collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_tshark_prints() {
        let text = "\n====\nFollow: tls,raw\nFilter: tcp.stream eq 0\nNode 0: 10.0.0.1:1\nNode 1: 10.0.0.2:2\n\
                    4745\n\t4f4b\n====\n\n====\nFollow: tls,raw\nFilter: tcp.stream eq 1\n====\n";
        assert_eq!(streams(text), [b"GEOK".to_vec(), Vec::new()]);
    }
}
