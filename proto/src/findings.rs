//! What can be wrong on a host: every finding by its id, and what to do about it.
//!
//! One table for both programs: the agent makes findings, the coordinator and its
//! CLI show the remedy beside them. docs/FINDINGS.md says more about each; a test
//! compares the two.

/// A kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Stable word.
    pub id: &'static str,
    /// How bad it is as a rule; a finding may carry another severity.
    pub severity: &'static str,
    /// What to do, one sentence.
    pub remedy: &'static str,
}

/// Something is broken or exposed now.
const CRITICAL: &str = "critical";
/// Something will break, or is weaker than it looks.
const WARNING: &str = "warning";
/// Good to know.
const INFO: &str = "info";

const fn known_as(id: &'static str, severity: &'static str, remedy: &'static str) -> Known {
    Known { id, severity, remedy }
}

/// Every kind, sorted by id.
pub const ALL: &[Known] = &[
    known_as(
        "bad-configuration",
        WARNING,
        "correct the agent's configuration; what is wrong there is not managed, the rest is",
    ),
    known_as("bad-label", WARNING, "correct the value"),
    known_as(
        "baked-certificate",
        WARNING,
        "mount the certificate into the container instead of building it into the image",
    ),
    known_as(
        "baked-private-key",
        CRITICAL,
        "everybody who can pull the image has this key: replace key and certificate, mount them, and rebuild the image without them",
    ),
    known_as(
        "bind-mounted-file",
        WARNING,
        "mount the directory instead of the file: then certificate and key change in one step",
    ),
    known_as(
        "certificate-unreadable",
        CRITICAL,
        "the file is no certificate that can be read; the next renewal replaces it",
    ),
    known_as(
        "changed-by-others",
        WARNING,
        "put back what was there, or remove the file that the message names: until then it is not renewed",
    ),
    known_as("clock-skew", WARNING, "set the clock (timedatectl, chrony): nothing is called verified before"),
    known_as(
        "container-missing",
        WARNING,
        "start the container, or correct its name in the agent's configuration",
    ),
    known_as(
        "docker-unreachable",
        CRITICAL,
        "start the engine, or correct `docker` in the agent's configuration; what is shown is what was last seen",
    ),
    known_as(
        "endpoint-unreachable",
        WARNING,
        "the declared port does not answer with TLS: correct the label or the service",
    ),
    known_as("expired", CRITICAL, "renew it now; if nothing uses it any more, remove the file"),
    known_as("expiring", WARNING, "renew it, or let Reseal do so: reseal adopt"),
    known_as(
        "incomplete-chain",
        WARNING,
        "serve the intermediates too: clients that do not have them refuse the certificate",
    ),
    known_as(
        "key-shared-across-hosts",
        WARNING,
        "give each host a key of its own: one stolen host exposes all of them",
    ),
    known_as(
        "key-too-open",
        WARNING,
        "take the read permission from everybody (chmod o-rwx), then renew: the key may have been read",
    ),
    known_as(
        "key-unreadable",
        CRITICAL,
        "set owner or mode by label so that the program's user can read the key",
    ),
    known_as("label-conflict", CRITICAL, "make the containers agree, or give each its own file"),
    known_as("left-out", WARNING, "shorten or remove what is named: the coordinator keeps no more of a host"),
    known_as("missing-directory", CRITICAL, "make the directory, or correct the path"),
    known_as(
        "name-mismatch",
        WARNING,
        "clients that check the name refuse it: get a certificate for the name that is asked for",
    ),
    known_as("no-space", CRITICAL, "make room on that file system"),
    known_as("not-enabled", WARNING, "add reseal.enable=true, or remove the labels"),
    known_as(
        "not-reported",
        CRITICAL,
        "shorten its path, label or description: until then it is not managed",
    ),
    known_as(
        "password-unreadable",
        CRITICAL,
        "put the key store's password into the file that password-file names; it may be missing, or another one",
    ),
    known_as(
        "path-escapes",
        CRITICAL,
        "the path leads out of its mount through a link: mount what it leads to",
    ),
    known_as("path-not-mounted", CRITICAL, "mount a directory or a volume there"),
    known_as(
        "process-unknown",
        WARNING,
        "correct unit or pid-file in the agent's configuration: the process cannot be told of a new certificate",
    ),
    known_as(
        "read-only",
        CRITICAL,
        "remount the file system read-write on the host (a mount may stay read-only in the container)",
    ),
    known_as("reload-missing", WARNING, "declare a reload method by label"),
    known_as(
        "restart-only",
        INFO,
        "this program takes a new certificate only by a restart: plan for the interruption, or put a proxy in front",
    ),
    known_as(
        "scan-incomplete",
        WARNING,
        "the search for certificates ended at a bound: what is beyond it is not seen; the message says which bound",
    ),
    known_as(
        "self-signed",
        INFO,
        "nobody vouches for it: adopt it to get a certificate of your own authority",
    ),
    known_as("served-differs-from-file", WARNING, "a program serves something else than its file: reload it"),
    known_as(
        "split-pair",
        CRITICAL,
        "certificate and key are on two mounts, which no single step can change: mount one directory that holds both",
    ),
    known_as("state-disk", CRITICAL, "make room, or remount the file system of the agent's state directory"),
    known_as(
        "too-many",
        CRITICAL,
        "the rest is left out, the least important first: split the host, or remove what is not needed",
    ),
    known_as("too-many-orders", WARNING, "256 orders wait; the rest comes when half of them are done"),
    known_as(
        "unequal-reload",
        WARNING,
        "consumers of one certificate take it in different ways: make sure each is reloaded, or give each its own file",
    ),
    known_as("unknown-bundle", CRITICAL, "the coordinator has no bundle of that name: correct the label"),
    known_as("unknown-label", WARNING, "correct the key; the message names the nearest"),
    known_as(
        "unmanaged",
        INFO,
        "nobody renews it through Reseal: reseal adopt, or put labels on its container",
    ),
    known_as("weak-key", WARNING, "replace it by ECDSA P-256 or RSA of at least 2048 bits"),
    known_as(
        "weak-signature",
        WARNING,
        "replace it: signatures with SHA-1 or MD5 can be forged, and clients refuse them",
    ),
    known_as(
        "world-writable",
        CRITICAL,
        "take the write permission from everybody: whoever may write there may replace the certificate",
    ),
];

/// The kind of that id.
pub fn known(id: &str) -> Option<&'static Known> {
    ALL.iter().find(|known| known.id == id)
}

/// How bad a severity is: 0 is the worst. A word of a newer program counts as a warning.
pub fn rank(severity: &str) -> u8 {
    match severity {
        CRITICAL => 0,
        INFO => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_each_once_with_a_remedy() {
        assert!(ALL.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert!(ALL.iter().all(|known| !known.remedy.is_empty()));
        assert!(ALL.iter().all(|known| [CRITICAL, WARNING, INFO].contains(&known.severity)));
        assert_eq!(known("expired").map(|known| known.severity), Some(CRITICAL));
        assert_eq!(known("nothing"), None);
        assert_eq!([CRITICAL, WARNING, "new", INFO].map(rank), [0, 1, 1, 2]);
    }
}
