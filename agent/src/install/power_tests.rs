//! Survives a power loss: the order of the system calls of an install and of a
//! journal. What a rename shows was flushed before it; what is switched to is
//! whole on disk, names and all; and nothing is said to be done before the
//! directories are flushed. (A kill proves nothing here, since the kernel keeps
//! what a killed process wrote.)

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::Command;

use reseal_proto::v1::Order;

use super::*;
use crate::journal::Journal;

/// Tells the child where to write.
const PLACE: &str = "RESEAL_TEST_PLACE";
const CALLS: &str = "trace=write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,symlink,symlinkat,link,linkat,mkdir,mkdirat";
const SHAPES: [Shape; 6] = [Pair, Combined, Jks, Apart, Singles, Mixed];
/// Two installs of each, and three steps of a journal.
const DONE: usize = 2 * SHAPES.len() + 3;

#[test]
fn what_is_shown_is_flushed_before_and_what_is_done_is_flushed_after() {
    let home = tempfile::tempdir().unwrap();
    let trace = home.path().join("trace");
    let traced = Command::new("strace")
        .args(["-f", "-y", "-s", "256", "-e", CALLS, "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "install::tests::power::installs_and_journals", "--ignored", "--nocapture"])
        .env(PLACE, home.path())
        .output()
        .unwrap_or_else(|error| panic!("strace does not run ({error}): apt-get install -y strace"));
    assert!(traced.status.success(), "{}", String::from_utf8_lossy(&traced.stderr));
    let mut disk = Disk::new(home.path().to_str().unwrap());
    std::fs::read_to_string(trace).unwrap().lines().for_each(|line| disk.observe(line));
    assert_eq!(disk.done, DONE, "every step was seen");
    assert!(disk.switches >= 2 && disk.renames > 10 && disk.in_place >= 6, "{disk:?}");
}

#[tokio::test]
#[ignore = "the child of the test above"]
async fn installs_and_journals() {
    let place = PathBuf::from(std::env::var(PLACE).expect("started by the test above"));
    let done = |what: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "done {what}").and_then(|()| out.flush()).unwrap();
    };
    for shape in SHAPES {
        let mount = tempfile::tempdir_in(&place).unwrap();
        std::fs::File::open(&place).and_then(|place| place.sync_all()).unwrap();
        let bench = Bench::at(mount, shape);
        if bench.installation.place.in_place() {
            bench.put_flat();
        }
        for generation in ["1", "2"] {
            bench.install(generation);
            done("an install");
        }
    }
    let order = Order { batch: "r1.0".into(), installations: vec!["/a".into()], ..Order::default() };
    let state = place.join("state");
    // As it is made at the start of the agent.
    Journal::unfinished(&state, Some("f")).unwrap();
    let journal = Journal::begin(&state, "f", order, 5);
    done("the intent");
    journal.update(|entries| entries[0].generation = "g".into()).await;
    done("a phase");
    journal.finish().await.unwrap();
    done("the end");
}

/// What a power loss would take away.
#[derive(Debug)]
struct Disk {
    home: String,
    /// Files with bytes that are not flushed.
    bytes: BTreeSet<String>,
    /// Directories with names that are not flushed.
    names: BTreeSet<String>,
    switches: usize,
    in_place: usize,
    renames: usize,
    done: usize,
}

impl Disk {
    fn new(home: &str) -> Self {
        let (bytes, names) = (BTreeSet::new(), BTreeSet::new());
        Self { home: home.to_owned(), bytes, names, switches: 0, in_place: 0, renames: 0, done: 0 }
    }

    fn observe(&mut self, line: &str) {
        let call = line.split_once(' ').map_or(line, |(_, call)| call.trim_start());
        let Some((name, arguments)) = call.split_once('(') else { return };
        if call.contains("\"done ") {
            assert!(self.bytes.is_empty() && self.names.is_empty(), "done too early: {self:?}");
            self.done += 1;
            return;
        }
        if !arguments.contains(&self.home) {
            return;
        }
        assert!(!call.contains("<unfinished"), "one thing at a time: {line}");
        let paths = paths(arguments);
        let worked = call.rsplit_once("= ").is_some_and(|(_, result)| !result.starts_with('-'));
        match name {
            "write" => {
                // The bytes are in quotes, too: only what is written to counts.
                self.bytes.insert(written(arguments));
            }
            "pwrite64" => {
                // A file that is seen changes: what it was is safe by then, and the file before it.
                assert!(self.bytes.is_empty() && self.names.is_empty(), "too early: {line} {self:?}");
                self.in_place += 1;
                self.bytes.insert(written(arguments));
            }
            "fsync" | "fdatasync" => {
                assert!(worked, "{line}");
                self.bytes.remove(&paths[0]);
                self.names.remove(&paths[0]);
            }
            _ if !worked => {}
            "mkdir" | "mkdirat" => {
                self.names.insert(parent(&paths[0]));
            }
            "symlink" | "symlinkat" | "link" | "linkat" => {
                let to = paths.last().unwrap();
                // Under a temporary name it shows nothing yet.
                if !to.rsplit_once('/').unwrap().1.starts_with('.') {
                    self.names.insert(parent(to));
                }
            }
            _ => {
                let [from, to] = [&paths[0], &paths[1]];
                assert!(!self.bytes.contains(from), "shown before it was flushed: {line}");
                // The one rename after which everybody reads the new generation.
                if to.ends_with("/current") || (to.ends_with("/site.crt") && !to.contains("/.reseal/")) {
                    assert!(
                        self.bytes.is_empty() && self.names.is_empty(),
                        "switched too early: {line} {self:?}"
                    );
                    self.switches += 1;
                }
                self.renames += 1;
                self.names.insert(parent(to));
            }
        }
    }
}

/// The file that a call writes to.
fn written(arguments: &str) -> String {
    let file = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    file.unwrap().0.to_owned()
}

/// The files of a call, as strace shows them: `7</dir>, "name"`, `7</dir/file>` or `"/dir/file"`.
fn paths(arguments: &str) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    let mut open: Option<String> = None;
    let mut rest = arguments;
    while let Some(at) = rest.find(['<', '"']) {
        let (quote, tail) = (rest.as_bytes()[at], &rest[at + 1..]);
        let Some((text, after)) = tail.split_once(if quote == b'<' { '>' } else { '"' }) else { break };
        if quote == b'<' {
            paths.extend(open.replace(text.to_owned()));
        } else if text.starts_with('/') {
            paths.push(text.to_owned());
        } else if let Some(directory) = open.take() {
            paths.push(format!("{directory}/{text}"));
        }
        rest = after;
    }
    paths.extend(open);
    paths
}

fn parent(path: &str) -> String {
    path.rsplit_once('/').unwrap().0.to_owned()
}
