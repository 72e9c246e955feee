//! Records as the projection reads them: a few numbers of each.
//!
//! The same bytes as in [`super::record`], read by messages that know fewer
//! fields. What they do not know is skipped, not copied: a batch is read
//! without its evidence, an inventory without its names.

use prost::Message;
use reseal_proto::v1;

/// What the projection wants of a [`super::record::Batch`].
#[derive(Clone, PartialEq, Message)]
pub struct BatchOutline {
    /// Empty for a planned renewal.
    #[prost(string, tag = "1")]
    pub rotation: String,
    /// Its host's place in the rotation's order.
    #[prost(uint32, tag = "2")]
    pub place: u32,
    /// The targets.
    #[prost(message, repeated, tag = "3")]
    pub targets: Vec<TargetOutline>,
    /// When its result arrived; 0 before.
    #[prost(int64, tag = "5")]
    pub finished_at: i64,
    /// How often this was tried before.
    #[prost(uint32, tag = "12")]
    pub attempt: u32,
}

/// What the projection wants of a [`super::record::Target`].
#[derive(Clone, Copy, PartialEq, Message)]
pub struct TargetOutline {
    /// A [`v1::TargetState`].
    #[prost(enumeration = "v1::TargetState", tag = "2")]
    pub state: i32,
    /// It counts no more.
    #[prost(bool, tag = "9")]
    pub superseded: bool,
    /// A [`v1::Grade`].
    #[prost(enumeration = "v1::Grade", tag = "10")]
    pub grade: i32,
    /// It was renewed since.
    #[prost(bool, tag = "12")]
    pub overtaken: bool,
}

/// What the projection wants of a chunk of a [`super::record::Inventory`].
#[derive(Clone, PartialEq, Message)]
pub struct InventoryOutline {
    /// Installations.
    #[prost(message, repeated, tag = "2")]
    pub installations: Vec<InstallationOutline>,
    /// Findings: only their number.
    #[prost(message, repeated, tag = "3")]
    pub findings: Vec<FindingOutline>,
}

/// An installation's certificate, and the id that its renewal is spread by.
#[derive(Clone, PartialEq, Message)]
pub struct InstallationOutline {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What is installed, if anything.
    #[prost(message, optional, tag = "10")]
    pub certificate: Option<CertificateOutline>,
    /// A [`v1::Management`].
    #[prost(enumeration = "v1::Management", tag = "11")]
    pub management: i32,
}

/// Of a certificate: its issuer and its life.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateOutline {
    /// Key identifier of the issuer, from the leaf.
    #[prost(bytes = "vec", tag = "6")]
    pub authority_key_id: Vec<u8>,
    /// Key of the issuer, from the chain; empty when unknown.
    #[prost(bytes = "vec", tag = "7")]
    pub issuer_spki_sha256: Vec<u8>,
    /// Seconds since the Unix epoch.
    #[prost(int64, tag = "8")]
    pub not_before: i64,
    /// Seconds since the Unix epoch.
    #[prost(int64, tag = "9")]
    pub not_after: i64,
}

/// A finding is there; nothing of it is read.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct FindingOutline {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::{Batch, Inventory, Target};

    /// The field numbers here are those of the full records.
    #[test]
    fn reads_what_the_full_records_say() {
        let batch = Batch {
            rotation: "r7".into(),
            place: 3,
            targets: vec![Target {
                installation: "/srv/tls/site.crt".into(),
                state: v1::TargetState::Verified.into(),
                superseded: true,
                grade: v1::Grade::Probe.into(),
                overtaken: true,
                ..Target::default()
            }],
            finished_at: 99,
            attempt: 4,
            payload: vec![1; 2000],
            ..Batch::default()
        };
        let outline = BatchOutline::decode(&batch.encode_to_vec()[..]).unwrap();
        let target = outline.targets[0];
        assert_eq!((outline.rotation.as_str(), outline.place, outline.finished_at), ("r7", 3, 99));
        assert_eq!(
            (outline.attempt, target.state(), target.superseded),
            (4, v1::TargetState::Verified, true)
        );
        assert_eq!((target.grade(), target.overtaken), (v1::Grade::Probe, true));

        let facts = v1::CertificateFacts {
            authority_key_id: vec![1; 20],
            issuer_spki_sha256: vec![2; 32],
            not_before: 10,
            not_after: 20,
            names: vec!["site.example.test".into()],
            ..v1::CertificateFacts::default()
        };
        let inventory = Inventory {
            digest: vec![7; 32],
            installations: vec![v1::Installation {
                id: "/srv/tls/site.crt".into(),
                label: "web".into(),
                certificate: Some(facts.clone()),
                management: v1::Management::Discovered.into(),
                ..v1::Installation::default()
            }],
            findings: vec![v1::Finding { id: "expiring".into(), ..v1::Finding::default() }],
            ..Inventory::default()
        };
        let outline = InventoryOutline::decode(&inventory.encode_to_vec()[..]).unwrap();
        let seen = outline.installations[0].certificate.clone().unwrap();
        assert_eq!((outline.installations[0].id.as_str(), outline.findings.len()), ("/srv/tls/site.crt", 1));
        assert_eq!((seen.authority_key_id, seen.issuer_spki_sha256), (vec![1; 20], vec![2; 32]));
        assert_eq!((seen.not_before, seen.not_after), (10, 20));
        assert_eq!(outline.installations[0].management(), v1::Management::Discovered);
    }
}
