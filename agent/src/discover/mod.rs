//! What is on this host: containers → installations, consumers, endpoints, findings.
//!
//! [`labels`] says what a container wants, [`declared`] what is wanted without
//! labels, [`mounts`] where that is on the host, [`programs`] how known programs
//! reload, [`methods`] what a reload is, [`processes`] what runs in a container, [`docker`] asks the engine,
//! [`assemble`] puts it together (pure) and [`watch`] keeps it fresh. The
//! types here are what everything else in the agent works on; nothing of them
//! ever comes from the coordinator.
//!
//! What nobody declared is found by [`search`]: [`files`] beneath the mounts,
//! and in [`images`], recognised by [`formats`], put together by [`pairing`] (pure), [`merge`]d
//! with what is declared and with what [`endpoints`] serve, and judged by [`findings`]. It is reported as
//! [`found::Discovered`] and never touched.

pub mod assemble;
pub mod declared;
pub mod docker;
pub mod endpoints;
pub mod files;
pub mod findings;
pub mod formats;
pub mod found;
pub mod images;
pub mod infer;
pub mod labels;
pub mod merge;
pub mod methods;
pub mod mounts;
pub mod output;
pub mod pairing;
pub mod processes;
pub mod programs;
mod reloads;
pub mod search;
pub mod settings;
pub mod sockets;
mod values;
pub mod watch;

use std::collections::BTreeMap;
use std::net::IpAddr;

use reseal_proto::v1::{CertificateFacts, Finding, Management, Usage};

pub use methods::{Command, Ladder, Reload, Signal};
pub use values::{Layout, Owner, Port, Starttls};

pub use mounts::Located;

use crate::key::KeyType;

/// What a container is, as far as Reseal cares.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// Without the leading slash.
    pub name: String,
    /// 64 hex digits.
    pub id: String,
    /// As the container's configuration names it.
    pub image: String,
    /// Runs, is not paused and not waiting for its next restart.
    pub running: bool,
    /// Of PID 1 in the host's PID namespace; 0 when it does not run.
    pub pid: i32,
    /// Words of PID 1's command line as the kernel shows it; empty when it does not run.
    pub process: Vec<String>,
    /// As its configuration names it; empty for the image's root.
    pub user: String,
    /// What runs behind PID 1 where that is a shell or an init.
    pub behind: Vec<processes::Process>,
    /// What the engine starts: path and arguments.
    pub command: Vec<String>,
    /// Longest destination first is not assumed.
    pub mounts: Vec<mounts::Mount>,
    /// Where its ports answer when dialled from the host.
    pub addresses: Vec<IpAddr>,
    /// Published on the host: container port → addresses to dial.
    pub published: BTreeMap<u16, Vec<std::net::SocketAddr>>,
    /// `reseal.*` labels, parsed.
    pub declared: labels::Declared,
    /// There are such labels.
    pub labelled: bool,
    /// 64 hex digits, of the image it was made from.
    pub image_id: String,
    /// Where its file system lies on the host.
    pub layers: Layers,
    /// It is a process of the host, with the host's own directories for mounts.
    pub host: Option<declared::HostProcess>,
}

/// Directories of the host that make up a container's file system (overlay2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    /// The engine's graph driver; empty when the engine does not say.
    pub driver: String,
    /// Of the image, the uppermost first. They never change.
    pub lower: Vec<String>,
    /// What the container itself wrote; empty when there is none.
    pub upper: String,
}

/// Everything that was found.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// By id.
    pub installations: BTreeMap<String, Installation>,
    /// What nobody declared, by id: reported, never renewed.
    pub discovered: BTreeMap<String, found::Discovered>,
    /// What adopting would declare, by the id of what was discovered.
    pub inferred: BTreeMap<String, infer::Inferred>,
    /// Trust bundles to write.
    pub trusts: Vec<TrustTarget>,
    /// Sorted, each once.
    pub findings: Vec<Finding>,
}

/// A place where a certificate and its key live.
#[derive(Clone, Debug)]
pub struct Installation {
    /// [`Place::id`].
    pub id: String,
    /// "<container>/<certificate name>" of the first consumer.
    pub label: String,
    /// Who declared it; never `Discovered`.
    pub management: Management,
    /// What was declared.
    pub wanted: Wanted,
    /// Where it is.
    pub place: Place,
    /// By container name.
    pub consumers: Vec<Consumer>,
    /// What is on disk.
    pub certificate: Option<CertificateFacts>,
}

impl Installation {
    /// Is the container, or process of the host, of this name a consumer?
    pub fn has(&self, container: &str) -> bool {
        self.consumers.iter().any(|consumer| consumer.container == container)
    }
}

/// What a certificate shall be.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// DNS names and IP addresses.
    pub names: Vec<String>,
    /// How the files hold it.
    pub layout: Layout,
    /// Of the entry in a key store; the store's own, or the installation's name, when absent.
    pub alias: Option<String>,
    /// Never `Unspecified`.
    pub usage: Usage,
    /// Kind of key.
    pub key_type: KeyType,
    /// "builtin".
    pub issuer: String,
    /// Keep what is there when absent.
    pub owner: Option<Owner>,
    /// Mode of the file with the key.
    pub mode: Option<u32>,
}

/// Files on the host that change together.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The mount's source on the host, without the agent's `host_root`.
    pub mount: String,
    /// Directory beneath it; empty for the mount itself.
    pub directory: String,
    /// File name of the certificate, or of the file that holds both.
    pub certificate: String,
    /// File name of the key; empty where the certificate's file holds it.
    pub key: String,
    /// The certificate's file itself is what is mounted; `mount` is its directory.
    pub single: bool,
    /// Where the key is, when that is not simply beside the certificate.
    pub key_at: Option<Located>,
    /// A further file with the leaf alone.
    pub leaf: Option<Located>,
    /// A further file with what is between leaf and root.
    pub chain: Option<Located>,
    /// The file with a key store's password; never written.
    pub password: Option<Located>,
}

impl Place {
    /// The certificate file's path on the host: the installation's id.
    pub fn id(&self) -> String {
        self.path_of(&self.certificate)
    }

    /// A file of the same directory, as a path on the host.
    pub fn path_of(&self, file: &str) -> String {
        Located { file: file.to_owned(), ..self.located() }.path()
    }

    /// The certificate's file.
    pub fn located(&self) -> Located {
        Located {
            mount: self.mount.clone(),
            directory: self.directory.clone(),
            file: self.certificate.clone(),
            single: self.single,
        }
    }

    /// The key's file, where it has one of its own.
    pub fn key_located(&self) -> Option<Located> {
        if self.key.is_empty() {
            return None;
        }
        let beside = || Located { file: self.key.clone(), single: false, ..self.located() };
        Some(self.key_at.clone().unwrap_or_else(beside))
    }

    /// The file that holds the private key.
    pub fn secret(&self) -> Located {
        self.key_located().unwrap_or_else(|| self.located())
    }

    /// Every file that is written, the certificate's first.
    pub fn files(&self) -> Vec<Located> {
        let mut files = vec![self.located()];
        files.extend(self.key_located());
        files.extend(self.leaf.iter().chain(&self.chain).cloned());
        files
    }

    /// Is one of them mounted by itself? Then they are written in place.
    pub fn in_place(&self) -> bool {
        self.files().iter().any(|file| file.single)
    }

    /// The certificate's file name without its extension.
    pub fn stem(&self) -> &str {
        match self.certificate.rsplit_once('.') {
            Some((stem, _)) if !stem.is_empty() => stem,
            _ => &self.certificate,
        }
    }
}

/// A container that uses an installation.
#[derive(Clone, Debug)]
pub struct Consumer {
    /// Its name: stable when it is recreated.
    pub container: String,
    /// Its id now.
    pub container_id: String,
    /// For people.
    pub image: String,
    /// The program that was recognised; empty when none was.
    pub program: String,
    /// See [`Container::running`].
    pub running: bool,
    /// See [`Container::pid`].
    pub pid: i32,
    /// By label, or by the known-program table.
    pub reload: Ladder,
    /// What is run before the reload.
    pub check: Option<Command>,
    /// Does the label declare ports? They have addresses only while it runs.
    pub serves: bool,
    /// What can be dialled now.
    pub endpoints: Vec<Endpoint>,
    /// What it sees of the files.
    pub inside: Inside,
    /// It is a process of the host and no container.
    pub host: Option<declared::HostProcess>,
}

/// An installation as a container sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// The user its configuration names: empty, a number or a name, perhaps with ":GROUP".
    pub user: String,
    /// Paths in the container, in the order of [`Place::files`].
    pub files: Vec<String>,
}

/// An address that serves TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// "address:port".
    pub address: String,
    /// The name to ask for; an IP address means no SNI.
    pub sni: String,
    /// What is spoken before the handshake.
    pub starttls: Starttls,
    /// From where it is dialled; the host when absent.
    pub within: Option<Within>,
    /// What answers there, as far as it is known.
    pub server: Option<Server>,
}

/// The container that an endpoint leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// Its name.
    pub container: String,
    /// Of its PID 1 in the host's PID namespace.
    pub pid: i32,
    /// Where it listens, in its own network.
    pub port: u16,
    /// The endpoint's address is one that the engine publishes on the host: others come
    /// that way, so no other way is taken instead.
    pub published: bool,
}

/// A container from whose network something is dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Within {
    /// Its name.
    pub container: String,
    /// Of its PID 1 in the host's PID namespace.
    pub pid: i32,
}

/// A trust bundle in a file.
#[derive(Clone, Debug)]
pub struct TrustTarget {
    /// Which bundle.
    pub bundle: String,
    /// `certificate` is the file, `key` is empty.
    pub place: Place,
    /// Keep what is there when absent.
    pub owner: Option<Owner>,
    /// 0644 when absent.
    pub mode: Option<u32>,
    /// Who loads it.
    pub consumers: Vec<Consumer>,
}

/// The order in which findings are kept and reported.
pub fn sort_findings(findings: &mut [Finding]) {
    findings.sort_by(|a, b| (&a.id, &a.object, &a.message).cmp(&(&b.id, &b.object, &b.message)));
}

/// Makes a finding; control characters are taken out.
pub fn finding(id: &str, object: &str, message: &str, severity: &str) -> Finding {
    let clean = |text: &str, most: usize| -> String {
        reseal_proto::facts::printable(text).chars().take(most).collect()
    };
    Finding {
        id: id.to_owned(),
        object: clean(object, 300),
        message: clean(message, 500),
        severity: severity.to_owned(),
    }
}
