//! What the store holds, as versioned protobuf records.
//!
//! A record is `version byte, prost message`. Fields are only ever added; the
//! version changes when a reader of the old one would be misled. Numbers of
//! seconds are since the Unix epoch, by the coordinator's clock.

use prost::Message;
use reseal_proto::v1;

use std::collections::BTreeMap;

/// The version byte in front of each record.
pub const VERSION: u8 = 1;

/// A record could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer Reseal.
    #[error("record {key} has version {found}, this program reads {VERSION}: use the newer reseal")]
    Version {
        /// The key it is under.
        key: String,
        /// The version byte found.
        found: u8,
    },
    /// Not a message of its kind.
    #[error("record {key} is damaged")]
    Damaged {
        /// The key it is under.
        key: String,
        /// What the decoder said.
        #[source]
        source: Option<prost::DecodeError>,
    },
}

/// Encodes a record.
pub fn encode<M: Message>(message: &M) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(VERSION);
    message.encode(&mut bytes).expect("a Vec grows as needed");
    bytes
}

/// Decodes a record; `key` is for the error.
pub fn decode<M: Message + Default>(key: &str, bytes: &[u8]) -> Result<M, RecordError> {
    match bytes {
        [VERSION, rest @ ..] => M::decode(rest)
            .map_err(|source| RecordError::Damaged { key: key.to_owned(), source: Some(source) }),
        [found, ..] => Err(RecordError::Version { key: key.to_owned(), found: *found }),
        [] => Err(RecordError::Damaged { key: key.to_owned(), source: None }),
    }
}

/// The fleet itself; written once by `reseal init`.
#[derive(Clone, PartialEq, Message)]
pub struct Fleet {
    /// The SPIFFE trust domain.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Control-plane CA certificate, DER; its key is `control_key`.
    #[prost(bytes = "vec", tag = "2")]
    pub control_ca: Vec<u8>,
    /// Control-plane CA key, wrapped.
    #[prost(message, optional, tag = "3")]
    pub control_key: Option<WrappedKey>,
    /// Managed root certificate, DER. Its key is not here: it is offline.
    #[prost(bytes = "vec", tag = "4")]
    pub managed_root: Vec<u8>,
    /// When the fleet was made.
    #[prost(int64, tag = "5")]
    pub created_at: i64,
    /// Evidence signing certificate of the coordinator, DER.
    #[prost(bytes = "vec", tag = "6")]
    pub evidence_certificate: Vec<u8>,
    /// Its key, wrapped.
    #[prost(message, optional, tag = "7")]
    pub evidence_key: Option<WrappedKey>,
}

/// A private key (PKCS#8 DER) under a data key under a key-encryption key.
/// `Debug` shows no bytes of it.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct WrappedKey {
    /// SHA-256 of the key-encryption key, first 8 bytes: which file unwraps it.
    #[prost(bytes = "vec", tag = "1")]
    pub kek_id: Vec<u8>,
    /// AES-256-GCM: 12-byte nonce, the 32-byte data key sealed by the KEK.
    #[prost(bytes = "vec", tag = "2")]
    pub data_key: Vec<u8>,
    /// AES-256-GCM: 12-byte nonce, the PKCS#8 document sealed by the data key.
    #[prost(bytes = "vec", tag = "3")]
    pub sealed: Vec<u8>,
}

impl std::fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WrappedKey(..)")
    }
}

/// A number.
#[derive(Clone, PartialEq, Message)]
pub struct Counter {
    /// Its value.
    #[prost(uint64, tag = "1")]
    pub value: u64,
}

/// A store that came from an export.
#[derive(Clone, PartialEq, Message)]
pub struct Restored {
    /// When the export was made, by its coordinator's clock.
    #[prost(int64, tag = "1")]
    pub exported_at: i64,
    /// The epoch it was made in.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// When somebody confirmed it; 0 before: it is not served.
    #[prost(int64, tag = "3")]
    pub confirmed_at: i64,
}

/// A person or program behind the CLI.
#[derive(Clone, PartialEq, Message)]
pub struct Operator {
    /// "viewer", "operator" or "admin".
    #[prost(string, tag = "1")]
    pub role: String,
    /// SHA-256 of the SubjectPublicKeyInfo that may use the name.
    #[prost(bytes = "vec", tag = "2")]
    pub spki_sha256: Vec<u8>,
    /// When added.
    #[prost(int64, tag = "3")]
    pub added_at: i64,
    /// End of its certificate.
    #[prost(int64, tag = "4")]
    pub expires_at: i64,
}

/// A join token, hashed.
#[derive(Clone, PartialEq, Message)]
pub struct Token {
    /// The host it is for.
    #[prost(string, tag = "1")]
    pub host: String,
    /// SHA-256 of the secret.
    #[prost(bytes = "vec", tag = "2")]
    pub secret_sha256: Vec<u8>,
    /// After this it is refused.
    #[prost(int64, tag = "3")]
    pub expires_at: i64,
    /// SHA-256 of the SPKI of the first CSR that used it; only that key may retry.
    #[prost(bytes = "vec", tag = "4")]
    pub bound_spki_sha256: Vec<u8>,
    /// Labels the host gets.
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
}

/// A host of the fleet.
#[derive(Clone, PartialEq, Message)]
pub struct Host {
    /// Labels, from the invitation.
    #[prost(btree_map = "string, string", tag = "1")]
    pub labels: BTreeMap<String, String>,
    /// [`HostState`].
    #[prost(enumeration = "HostState", tag = "2")]
    pub state: i32,
    /// SHA-256 of the SPKI of the identity in use.
    #[prost(bytes = "vec", tag = "3")]
    pub identity_spki_sha256: Vec<u8>,
    /// SHA-256 of the SPKI of a renewed identity not yet seen in use.
    #[prost(bytes = "vec", tag = "4")]
    pub next_spki_sha256: Vec<u8>,
    /// End of the newest identity.
    #[prost(int64, tag = "5")]
    pub identity_expires_at: i64,
    /// When it joined.
    #[prost(int64, tag = "6")]
    pub enrolled_at: i64,
    /// Why it is banned.
    #[prost(string, tag = "7")]
    pub ban_reason: String,
}

/// The life of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum HostState {
    /// Never written.
    Unknown = 0,
    /// Has a token, no identity yet.
    Invited = 1,
    /// May speak.
    Enrolled = 2,
    /// May not.
    Banned = 3,
}

/// A chunk of what a host reported, at most 50 installations.
#[derive(Clone, PartialEq, Message)]
pub struct Inventory {
    /// The digest of the whole inventory; in chunk 0 only.
    #[prost(bytes = "vec", tag = "1")]
    pub digest: Vec<u8>,
    /// Installations, ordered by id over all chunks.
    #[prost(message, repeated, tag = "2")]
    pub installations: Vec<v1::Installation>,
    /// Findings, at most 1,000 over all chunks: the first in chunk 0, the others behind the
    /// installations.
    #[prost(message, repeated, tag = "3")]
    pub findings: Vec<v1::Finding>,
    /// Number of chunks; in chunk 0 only.
    #[prost(uint32, tag = "4")]
    pub chunks: u32,
    /// When it was reported; in chunk 0 only.
    #[prost(int64, tag = "5")]
    pub reported_at: i64,
    /// Trust bundles on the host, and who loads them; in chunk 0 only, at most 200.
    #[prost(message, repeated, tag = "6")]
    pub trust_stores: Vec<v1::TrustStore>,
}

/// A CA certificate and key of the built-in CA.
#[derive(Clone, PartialEq, Message)]
pub struct Authority {
    /// [`AuthorityState`].
    #[prost(enumeration = "AuthorityState", tag = "1")]
    pub state: i32,
    /// Its certificate, DER; empty until the root has signed it.
    #[prost(bytes = "vec", tag = "2")]
    pub certificate: Vec<u8>,
    /// Its key, wrapped.
    #[prost(message, optional, tag = "3")]
    pub key: Option<WrappedKey>,
    /// Why it was tainted.
    #[prost(string, tag = "4")]
    pub reason: String,
    /// When the slot was made.
    #[prost(int64, tag = "5")]
    pub created_at: i64,
}

/// The life of an authority; transitions are [`crate::domain::authority`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum AuthorityState {
    /// Never written.
    Unknown = 0,
    /// Has a key, waits for the root's signature.
    PendingSignature = 1,
    /// Signed, not in use.
    Prepared = 2,
    /// Issues.
    Active = 3,
    /// Issues no more, still signs revocation information.
    Old = 4,
    /// Its key is not ours alone any more.
    Tainted = 5,
    /// Revoked by the root.
    Revoked = 6,
}

/// A rotation. Its targets are in the batches of its hosts.
#[derive(Clone, PartialEq, Message)]
pub struct Rotation {
    /// A [`v1::RotationState`].
    #[prost(enumeration = "v1::RotationState", tag = "1")]
    pub state: i32,
    /// As ordered.
    #[prost(message, optional, tag = "2")]
    pub selection: Option<v1::Selection>,
    /// The operator's words.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// Who ordered it.
    #[prost(string, tag = "4")]
    pub operator: String,
    /// Authority name of the compromised issuer; empty for other selections.
    #[prost(string, tag = "5")]
    pub compromised: String,
    /// Authority name to issue from; the active one at the start.
    #[prost(string, tag = "6")]
    pub to_issuer: String,
    /// When it was ordered.
    #[prost(int64, tag = "7")]
    pub created_at: i64,
    /// When it ended; 0 before.
    #[prost(int64, tag = "8")]
    pub ended_at: i64,
    /// When stragglers are given up.
    #[prost(int64, tag = "9")]
    pub deadline_at: i64,
    /// Hosts up to and including each wave, cumulative.
    #[prost(uint32, repeated, tag = "10")]
    pub waves: Vec<u32>,
    /// Number of waves ordered so far, 1 at the start.
    #[prost(uint32, tag = "11")]
    pub wave: u32,
    /// When the newest wave was ordered.
    #[prost(int64, tag = "12")]
    pub wave_at: i64,
    /// Halt threshold: share of attempted targets, in hundredths of a percent.
    #[prost(uint32, tag = "13")]
    pub max_failures_basis_points: u32,
    /// Halt threshold as a number of targets; 0: the share counts.
    #[prost(uint32, tag = "14")]
    pub max_failures: u32,
    /// A [`v1::OnFailure`].
    #[prost(enumeration = "v1::OnFailure", tag = "15")]
    pub on_failure: i32,
    /// Why it stands still.
    #[prost(string, tag = "16")]
    pub note: String,
    /// W3C trace context of the operator's command.
    #[prost(string, tag = "17")]
    pub traceparent: String,
    /// From the request: the same key gives the same rotation.
    #[prost(bytes = "vec", tag = "18")]
    pub idempotency_key: Vec<u8>,
    /// Batches at the start.
    #[prost(uint32, tag = "19")]
    pub batches: u32,
    /// When the last target that is no straggler ended well; 0 before.
    #[prost(int64, tag = "20")]
    pub green_at: i64,
    /// Failures that a `resume` has accepted; they do not halt it again.
    #[prost(uint32, tag = "21")]
    pub failures_accepted: u32,
    /// Containers that use the targets chosen at the start.
    #[prost(uint32, tag = "22")]
    pub containers: u32,
    /// Endpoints that serve them.
    #[prost(uint32, tag = "23")]
    pub endpoints: u32,
    /// The store's revision when the targets were chosen: inventories that are newer are looked at again.
    #[prost(uint64, tag = "24")]
    pub chosen_at_revision: u64,
    /// Hosts that an operator took out: their targets are [`v1::TargetState::Excluded`], and what
    /// turns up on them later does not join.
    #[prost(message, repeated, tag = "25")]
    pub excluded: Vec<v1::ExcludedHost>,
}

impl Rotation {
    /// Hosts whose targets are ordered so far: those with a [`Batch::place`] up to this.
    pub fn reach(&self) -> u32 {
        let ordered = self.waves.len().min(self.wave as usize);
        self.waves[..ordered].last().copied().unwrap_or(0)
    }

    /// An operator took this host out.
    pub fn excludes(&self, host: &str) -> bool {
        self.excluded.iter().any(|excluded| excluded.host == host)
    }
}

/// What the batches of a rotation that has ended add up to, so that they need not be read to tell.
/// Written after the end, and again when a result comes late; the batches are what counts.
#[derive(Clone, PartialEq, Message)]
pub struct Outcome {
    /// Targets by [`v1::TargetState`], superseded ones and those of `open` left out.
    #[prost(btree_map = "uint32, uint32", tag = "1")]
    pub targets: BTreeMap<u32, u32>,
    /// The same by wave.
    #[prost(message, repeated, tag = "2")]
    pub waves: Vec<OutcomeWave>,
    /// Hosts that have a batch, those of `open` among them.
    #[prost(uint32, tag = "3")]
    pub hosts: u32,
    /// Of the targets, those that a handshake or something better has proved.
    #[prost(uint32, tag = "4")]
    pub probed: u32,
    /// Batches that were ordered and are not finished: a result may still come.
    #[prost(message, repeated, tag = "5")]
    pub open: Vec<OpenBatch>,
}

/// A wave of an [`Outcome`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct OutcomeWave {
    /// Targets.
    #[prost(uint32, tag = "1")]
    pub targets: u32,
    /// Of those, at an end.
    #[prost(uint32, tag = "2")]
    pub done: u32,
    /// Of those, failed.
    #[prost(uint32, tag = "3")]
    pub failed: u32,
}

/// A batch by its name: one that is not finished.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct OpenBatch {
    /// Its host.
    #[prost(string, tag = "1")]
    pub host: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub batch: String,
}

/// Up to 50 targets of one host: the durable unit of work.
#[derive(Clone, PartialEq, Message)]
pub struct Batch {
    /// Empty for a planned renewal.
    #[prost(string, tag = "1")]
    pub rotation: String,
    /// Its host's place in the rotation's order, 1-based: it is ordered with the wave that reaches so far.
    #[prost(uint32, tag = "2")]
    pub place: u32,
    /// The targets.
    #[prost(message, repeated, tag = "3")]
    pub targets: Vec<Target>,
    /// When it was made.
    #[prost(int64, tag = "4")]
    pub created_at: i64,
    /// When its result arrived; 0 before.
    #[prost(int64, tag = "5")]
    pub finished_at: i64,
    /// Exact evidence payload bytes, from the agent.
    #[prost(bytes = "vec", tag = "7")]
    pub payload: Vec<u8>,
    /// The agent's signature over `payload`.
    #[prost(bytes = "vec", tag = "8")]
    pub signature: Vec<u8>,
    /// The agent's identity certificate, DER.
    #[prost(bytes = "vec", tag = "9")]
    pub identity: Vec<u8>,
    /// Exact bytes of a [`v1::Countersignature`].
    #[prost(bytes = "vec", tag = "10")]
    pub countersignature: Vec<u8>,
    /// The coordinator's signature over it.
    #[prost(bytes = "vec", tag = "11")]
    pub countersignature_signature: Vec<u8>,
    /// How often this was tried before: renewals back off by it, `retry` raises it.
    #[prost(uint32, tag = "12")]
    pub attempt: u32,
    /// W3C trace context.
    #[prost(string, tag = "13")]
    pub traceparent: String,
    /// A [`v1::OnFailure`].
    #[prost(enumeration = "v1::OnFailure", tag = "14")]
    pub on_failure: i32,
}

/// One installation within a batch.
#[derive(Clone, PartialEq, Message)]
pub struct Target {
    /// The installation's id.
    #[prost(string, tag = "1")]
    pub installation: String,
    /// A [`v1::TargetState`]; `Pending` stands for `Ordered` once the wave is.
    #[prost(enumeration = "v1::TargetState", tag = "2")]
    pub state: i32,
    /// Why it failed.
    #[prost(message, optional, tag = "3")]
    pub failure: Option<v1::Failure>,
    /// Fingerprint before, as the inventory had it.
    #[prost(bytes = "vec", tag = "7")]
    pub before: Vec<u8>,
    /// For people.
    #[prost(string, tag = "8")]
    pub label: String,
    /// A later batch tries it again: this one counts no more.
    #[prost(bool, tag = "9")]
    pub superseded: bool,
    /// A [`v1::Grade`]: how strong its proof is.
    #[prost(enumeration = "v1::Grade", tag = "10")]
    pub grade: i32,
    /// Serial its first certificate will have: the intent, on record before anything is signed.
    #[prost(bytes = "vec", tag = "11")]
    pub serial: Vec<u8>,
    /// Unserved, and renewed before it could be proved: nothing proves it any more.
    #[prost(bool, tag = "12")]
    pub overtaken: bool,
    /// The batch that renewed it.
    #[prost(string, tag = "13")]
    pub overtaken_by: String,
}

/// What was signed for one CSR message; before that, what is about to be signed
/// when its serials are not those of the batch.
#[derive(Clone, PartialEq, Message)]
pub struct Issued {
    /// Leaf certificates, DER, in target order.
    #[prost(message, repeated, tag = "1")]
    pub leaves: Vec<IssuedLeaf>,
    /// Authority they are from.
    #[prost(string, tag = "2")]
    pub authority: String,
    /// When.
    #[prost(int64, tag = "3")]
    pub at: i64,
}

/// One leaf.
#[derive(Clone, PartialEq, Message)]
pub struct IssuedLeaf {
    /// The installation.
    #[prost(string, tag = "1")]
    pub installation: String,
    /// DER; empty while only the intent is on record.
    #[prost(bytes = "vec", tag = "2")]
    pub certificate: Vec<u8>,
    /// Serial, recorded before anything is signed.
    #[prost(bytes = "vec", tag = "3")]
    pub serial: Vec<u8>,
    /// SHA-256 of the SubjectPublicKeyInfo it is for.
    #[prost(bytes = "vec", tag = "4")]
    pub spki_sha256: Vec<u8>,
}

/// A lease: who holds it, until when (coordinator's clock).
#[derive(Clone, PartialEq, Message)]
pub struct Lease {
    /// Coordinator name.
    #[prost(string, tag = "1")]
    pub holder: String,
    /// Epoch in which it was taken.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
}

pub use v1::{AuditEntry, Policy};
