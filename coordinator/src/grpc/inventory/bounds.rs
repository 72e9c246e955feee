//! How much of a host's inventory is kept.
//!
//! One odd installation must not end its host's session, nor hide the others: what
//! is beyond a bound is left out, and a finding names it. What is managed goes before
//! what was only discovered, and of the findings the worst go first. While an
//! installation is left out the digest is not kept, so that the whole is asked for at
//! each session and comes back as soon as there is room.

use std::collections::BTreeMap;

use prost::Message as _;
use reseal_proto::facts::printable;
use reseal_proto::findings;
use reseal_proto::v1::{Finding, Installation, TrustStore};

use crate::store::record::Inventory;

/// Installations of one host at most.
const MAX_INSTALLATIONS: usize = 2_000;
/// Bytes of all of them at most.
const MAX_HOST_BYTES: usize = 4 * 1024 * 1024;
/// Findings of one host at most, and bytes of all of them.
const MAX_FINDINGS: usize = 1_000;
const MAX_FINDINGS_BYTES: usize = 256 * 1024;
/// Bytes of a finding's id and severity, of its object, and of its message, at most; the
/// rest of the latter two is cut off.
const MAX_WORD: usize = 64;
const MAX_OBJECT: usize = 600;
const MAX_MESSAGE: usize = 2_000;
/// Trust stores of one host at most, and bytes of all of them.
const MAX_TRUST_STORES: usize = 200;
const MAX_TRUST_BYTES: usize = 24 * 1024;
/// An installation's record at most, bytes.
const MAX_INSTALLATION_BYTES: usize = 40 * 1024;
/// Bytes of an installation's id and label, of a key identifier and of the digest, at most.
const MAX_ID: usize = 600;
const MAX_LABEL: usize = 300;
const MAX_KEY_ID: usize = 64;
/// Installations in one chunk, and bytes.
pub(super) const CHUNK: usize = 50;
pub(super) const CHUNK_BYTES: usize = 48 * 1024;
/// Left out ones that are named one by one; the rest is a number.
const NAMED: usize = 20;
/// Characters of a name in a finding.
const SHOWN: usize = 120;

/// What a host has, as it says.
pub(super) struct Reported {
    pub(super) digest: Vec<u8>,
    pub(super) installations: BTreeMap<String, Installation>,
    pub(super) findings: Vec<Finding>,
    pub(super) trust_stores: Vec<TrustStore>,
}

/// What of it is kept.
pub(super) struct Taken {
    /// The head chunk, without installations.
    pub(super) head: Inventory,
    /// In the order of their ids.
    pub(super) installations: Vec<Installation>,
    /// Ours first, then the host's, the worst before the others.
    pub(super) findings: Vec<Finding>,
    /// How many things were left out.
    pub(super) left_out: usize,
}

/// Keeps what is within the bounds.
pub(super) fn take(reported: Reported) -> Taken {
    let mut left_out = Vec::new();
    let mut installations = Vec::new();
    let mut bytes = 0;
    let (managed, discovered): (Vec<_>, Vec<_>) =
        reported.installations.into_iter().partition(|(_, installation)| installation.is_managed());
    for (id, installation) in managed.into_iter().chain(discovered) {
        let size = installation.encoded_len();
        let why = match excess(&installation) {
            Some(why) => Some(why),
            None if installations.len() >= MAX_INSTALLATIONS => {
                Some(format!("a host has at most {MAX_INSTALLATIONS} installations"))
            }
            None if bytes + size > MAX_HOST_BYTES => {
                Some(format!("the installations of a host have at most {MAX_HOST_BYTES} bytes in all"))
            }
            None => None,
        };
        match why {
            Some(why) => left_out.push((id, why)),
            None => {
                bytes += size;
                installations.push(installation);
            }
        }
    }
    installations.sort_by(|a, b| a.id.cmp(&b.id));
    let (trust_stores, beyond) = trust_stores(reported.trust_stores);
    left_out.extend(beyond);
    let complete = left_out.is_empty() && reported.digest.len() <= MAX_KEY_ID;
    let head = Inventory {
        digest: if complete { reported.digest } else { Vec::new() },
        trust_stores,
        ..Inventory::default()
    };
    let left = left_out.len();
    let findings = worst_first(about(left_out), reported.findings);
    Taken { head, installations, findings, left_out: left }
}

/// What is too long about an installation.
fn excess(installation: &Installation) -> Option<String> {
    let facts = installation.certificate.as_ref();
    let key = |bytes: Option<&Vec<u8>>| bytes.is_some_and(|bytes| bytes.len() > MAX_KEY_ID);
    if installation.id.is_empty() {
        Some("it has no path".into())
    } else if installation.id.len() > MAX_ID {
        Some(format!("its path has more than {MAX_ID} bytes"))
    } else if installation.label.len() > MAX_LABEL {
        Some(format!("its label has more than {MAX_LABEL} bytes"))
    } else if key(facts.map(|facts| &facts.authority_key_id))
        || key(facts.map(|facts| &facts.issuer_spki_sha256))
        || key(facts.map(|facts| &facts.fingerprint))
    {
        Some(format!("a key identifier or fingerprint of its certificate has more than {MAX_KEY_ID} bytes"))
    } else if installation.encoded_len() > MAX_INSTALLATION_BYTES {
        Some(format!("it is described in more than {MAX_INSTALLATION_BYTES} bytes"))
    } else {
        None
    }
}

/// Those that there is room for, and the others with the reason.
fn trust_stores(reported: Vec<TrustStore>) -> (Vec<TrustStore>, Vec<(String, String)>) {
    let (mut kept, mut beyond, mut bytes) = (Vec::new(), Vec::new(), 0);
    for store in reported {
        let size = store.encoded_len();
        if kept.len() >= MAX_TRUST_STORES || bytes + size > MAX_TRUST_BYTES {
            let why = format!(
                "a host has at most {MAX_TRUST_STORES} trust stores, of {MAX_TRUST_BYTES} bytes in all"
            );
            beyond.push((store.path, why));
        } else {
            bytes += size;
            kept.push(store);
        }
    }
    (kept, beyond)
}

/// Findings about what was left out.
fn about(left_out: Vec<(String, String)>) -> Vec<Finding> {
    let more = left_out.len().saturating_sub(NAMED);
    let finding = |object: String, message: String| Finding {
        id: "left-out".into(),
        object,
        message,
        severity: "warning".into(),
    };
    let mut findings: Vec<Finding> = left_out
        .into_iter()
        .take(NAMED)
        .map(|(name, why)| {
            let name: String = printable(&name).chars().take(SHOWN).collect();
            finding(name, format!("the coordinator does not look after it: {why}"))
        })
        .collect();
    if more > 0 {
        findings.push(finding("more".into(), format!("{more} more are left out for reasons of this kind")));
    }
    findings
}

/// Ours first, then the host's, the worst before the others, while there is room.
fn worst_first(ours: Vec<Finding>, mut reported: Vec<Finding>) -> Vec<Finding> {
    reported.sort_by_key(|finding| findings::rank(&finding.severity));
    let mut kept = Vec::new();
    let (mut bytes, mut beyond) = (0, 0_usize);
    for finding in ours.into_iter().chain(reported) {
        let Some(finding) = within(finding) else {
            beyond += 1;
            continue;
        };
        let size = finding.encoded_len() + 8;
        // One place is kept for the number of those that have none.
        if kept.len() + 1 >= MAX_FINDINGS || bytes + size > MAX_FINDINGS_BYTES - 1024 {
            beyond += 1;
            continue;
        }
        bytes += size;
        kept.push(finding);
    }
    if beyond > 0 {
        kept.push(Finding {
            id: "left-out".into(),
            object: "findings".into(),
            message: format!("{beyond} findings more: `reseal-agent scan` on the host shows all"),
            severity: "warning".into(),
        });
    }
    kept
}

/// A finding whose texts are short enough; `None` when its words are none of ours.
fn within(mut finding: Finding) -> Option<Finding> {
    if finding.id.is_empty() || finding.id.len() > MAX_WORD || finding.severity.len() > MAX_WORD {
        return None;
    }
    cut(&mut finding.object, MAX_OBJECT);
    cut(&mut finding.message, MAX_MESSAGE);
    Some(finding)
}

/// Cuts a text down to `most` bytes, and shows that it was.
fn cut(text: &mut String, most: usize) {
    const MARK: &str = "…";
    if text.len() > most {
        let end = (0..=most - MARK.len()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(MARK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reseal_proto::v1::Management;

    fn one(id: &str) -> Installation {
        Installation { id: id.into(), ..Installation::default() }
    }

    fn report(installations: Vec<Installation>) -> Reported {
        Reported {
            digest: vec![1; 32],
            installations: installations.into_iter().map(|one| (one.id.clone(), one)).collect(),
            findings: Vec::new(),
            trust_stores: Vec::new(),
        }
    }

    #[test]
    fn what_is_odd_is_left_out_and_named_and_the_rest_is_kept() {
        let odd = [
            one(&"p".repeat(MAX_ID + 1)),
            one(""),
            Installation { label: "l".repeat(MAX_LABEL + 1), ..one("/label") },
            Installation { names: vec!["n".repeat(MAX_INSTALLATION_BYTES)], ..one("/names") },
            Installation {
                certificate: Some(reseal_proto::v1::CertificateFacts {
                    authority_key_id: vec![0; MAX_KEY_ID + 1],
                    ..Default::default()
                }),
                ..one("/key")
            },
        ];
        let taken = take(report(odd.into_iter().chain([one("/good")]).collect()));
        assert_eq!(taken.installations.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["/good"]);
        assert_eq!((taken.left_out, taken.findings.len()), (5, 5));
        assert!(taken.head.digest.is_empty(), "the whole is asked for again");
        assert!(taken.findings.iter().all(|finding| finding.object.chars().count() <= SHOWN));
        assert_eq!(take(report(vec![one("/good")])).head.digest, vec![1; 32]);
    }

    #[test]
    fn numbers_are_bounded() {
        let many = (0..MAX_INSTALLATIONS + 30).map(|at| one(&format!("/{at:05}"))).collect();
        let taken = take(report(many));
        assert_eq!((taken.installations.len(), taken.left_out), (MAX_INSTALLATIONS, 30));
        assert_eq!(taken.findings.len(), NAMED + 1, "the rest is a number");
        assert!(taken.findings[NAMED].message.contains("10 more"));
    }

    #[test]
    fn what_is_managed_goes_before_what_was_discovered() {
        let found = |at: usize| Installation {
            management: Management::Discovered.into(),
            ..one(&format!("/a/{at:05}"))
        };
        let declared = (0..10).map(|at| one(&format!("/z/{at}")));
        let taken = take(report((0..MAX_INSTALLATIONS).map(found).chain(declared).collect()));
        assert_eq!((taken.installations.len(), taken.left_out), (MAX_INSTALLATIONS, 10));
        assert_eq!(taken.installations.iter().filter(|one| one.is_managed()).count(), 10);
        assert!(taken.installations.windows(2).all(|pair| pair[0].id < pair[1].id));
    }

    #[test]
    fn bytes_of_a_host_are_bounded() {
        let large = |at| Installation { names: vec!["n".repeat(30_000)], ..one(&format!("/{at:03}")) };
        let taken = take(report((0..200).map(large).collect()));
        let bytes: usize = taken.installations.iter().map(|one| one.encoded_len()).sum();
        assert!(bytes <= MAX_HOST_BYTES && taken.installations.len() > 100, "{bytes}");
        assert_eq!(taken.installations.len() + taken.left_out, 200);
    }

    fn finding(id: &str, severity: &str, message: usize) -> Finding {
        Finding {
            id: id.into(),
            object: "/a".into(),
            message: "m".repeat(message),
            severity: severity.into(),
        }
    }

    #[test]
    fn findings_are_bounded_and_the_worst_are_kept() {
        let many = (0..2_000).map(|_| finding("unmanaged", "info", 10));
        let bad = (0..5).map(|_| finding("expired", "critical", 10));
        let taken = take(Reported { findings: many.chain(bad).collect(), ..report(Vec::new()) });
        assert_eq!(taken.findings.len(), MAX_FINDINGS);
        assert!(taken.findings[..5].iter().all(|finding| finding.id == "expired"));
        let last = taken.findings.last().unwrap();
        assert!(last.object == "findings" && last.message.starts_with("1006 findings more"), "{last:?}");
        assert_eq!((taken.left_out, taken.head.digest.len()), (0, 32), "no installation is missing");

        let large = (0..400).map(|_| finding("unmanaged", "info", 1_900));
        let taken = take(Reported { findings: large.collect(), ..report(Vec::new()) });
        let bytes: usize = taken.findings.iter().map(|finding| finding.encoded_len()).sum();
        assert!(bytes <= MAX_FINDINGS_BYTES && taken.findings.len() > 100, "{bytes}");
    }

    #[test]
    fn an_odd_finding_hides_no_other() {
        let odd = vec![
            finding(&"i".repeat(65), "critical", 1),
            finding("", "critical", 1),
            finding("x", &"s".repeat(65), 1),
            Finding { object: "ö".repeat(4_000), ..finding("long", "critical", 90_000) },
            finding("good", "info", 1),
        ];
        let taken = take(Reported { findings: odd, ..report(Vec::new()) });
        let ids: Vec<&str> = taken.findings.iter().map(|finding| finding.id.as_str()).collect();
        assert_eq!(ids, ["long", "good", "left-out"]);
        let long = &taken.findings[0];
        assert!(long.object.len() <= MAX_OBJECT && long.object.ends_with('…'));
        assert!(long.message.len() <= MAX_MESSAGE && long.message.ends_with('…'));
        assert!(taken.findings[2].message.starts_with("3 findings more"));
    }

    #[test]
    fn trust_stores_are_bounded() {
        let store = |at: usize| TrustStore { path: format!("/{at}"), ..TrustStore::default() };
        let taken = take(Reported {
            trust_stores: (0..MAX_TRUST_STORES + 5).map(store).collect(),
            ..report(Vec::new())
        });
        assert_eq!((taken.head.trust_stores.len(), taken.left_out), (MAX_TRUST_STORES, 5));
        let long = TrustStore { containers: vec!["c".repeat(MAX_TRUST_BYTES)], ..store(1) };
        let taken = take(Reported { trust_stores: vec![long, store(2)], ..report(Vec::new()) });
        assert_eq!(taken.head.trust_stores.len(), 1, "the other one is kept");
    }
}
