//! Every key of the store, in one place.
//!
//! Keys are path-like UTF-8. What belongs to a host begins with its kind and
//! its name; what belongs to a rotation with its kind and the rotation, so that
//! of one that has ended nothing else has to be looked at. Numbers are
//! zero-padded so that byte order is number order.

/// The fleet's name, its CA certificates and its settings: [`super::record::Fleet`].
pub const FLEET: &str = "meta/fleet";
/// Raised at every open: [`super::record::Counter`].
pub const EPOCH: &str = "meta/epoch";
/// That it was imported, and whether somebody has looked at it since: [`super::record::Restored`].
pub const RESTORED: &str = "meta/restored";
/// The number of the last rotation; guarded by every new one, so that two never overlap unseen.
pub const ROTATIONS: &str = "meta/rotations";
/// Who runs the engine.
pub const ENGINE_LEASE: &str = "lease/engine";

/// Prefix of [`operator`].
pub const OPERATORS: &str = "operator/";
/// Prefix of [`token`].
pub const TOKENS: &str = "token/";
/// Prefix of [`host`].
pub const HOSTS: &str = "host/";
/// Prefix of every [`inventory`] record.
pub const INVENTORIES: &str = "inventory/";
/// Prefix of [`policy`].
pub const POLICIES: &str = "policy/";
/// Prefix of [`authority`].
pub const AUTHORITIES: &str = "authority/";
/// Prefix of [`rotation`].
pub const ROTATION: &str = "rotation/";
/// Prefix of every [`outcome`].
pub const OUTCOMES: &str = "outcome/";
/// Prefix of every [`batch`] of a rotation.
pub const BATCHES: &str = "batch/";
/// Prefix of every [`batch`] of a planned renewal.
pub const RENEWALS: &str = "renewal/";
/// Prefix of [`renewing`].
pub const RENEWING: &str = "renewing/";
/// Prefix of every [`issued`].
pub const ISSUED: &str = "issued/";
/// Prefix of the audit chains.
pub const AUDIT: &str = "audit/";

/// [`super::record::Operator`].
pub fn operator(name: &str) -> String {
    format!("{OPERATORS}{name}")
}

/// [`super::record::Token`].
pub fn token(id: &str) -> String {
    format!("{TOKENS}{id}")
}

/// [`super::record::Host`].
pub fn host(name: &str) -> String {
    format!("{HOSTS}{name}")
}

/// Chunk `chunk` of a host's inventory: [`super::record::Inventory`]. Chunk 0 always exists once the host reported.
pub fn inventory(host: &str, chunk: u32) -> String {
    format!("{INVENTORIES}{host}/{chunk:04}")
}

/// Prefix of a host's inventory chunks.
pub fn inventory_of(host: &str) -> String {
    format!("{INVENTORIES}{host}/")
}

/// [`super::record::Policy`].
pub fn policy(name: &str) -> String {
    format!("{POLICIES}{name}")
}

/// [`super::record::Authority`].
pub fn authority(name: &str) -> String {
    format!("{AUTHORITIES}{name}")
}

/// [`super::record::Rotation`].
pub fn rotation(id: &str) -> String {
    format!("{ROTATION}{id}")
}

/// What an ended rotation came to: [`super::record::Outcome`].
pub fn outcome(id: &str) -> String {
    format!("{OUTCOMES}{id}")
}

/// The durable unit of work, up to 50 targets of one host: [`super::record::Batch`].
/// Its name says whether it is a rotation's; whatever the name, the key is one of this host.
pub fn batch(host: &str, batch: &str) -> String {
    match rotation_of(batch) {
        Some(rotation) => format!("{BATCHES}{rotation}/{host}/{batch}"),
        None => format!("{RENEWALS}{host}/{batch}"),
    }
}

/// The id of the rotation that a batch of this name belongs to; `None`: a planned renewal.
pub fn rotation_of(batch: &str) -> Option<&str> {
    let (rotation, _) = batch.split_once('.')?;
    let number = rotation.strip_prefix('r')?;
    (!number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())).then_some(rotation)
}

/// Prefix of a rotation's batches.
pub fn batches_in(rotation: &str) -> String {
    format!("{BATCHES}{rotation}/")
}

/// Prefix of a rotation's batches on one host.
pub fn batches_on(host: &str, rotation: &str) -> String {
    format!("{BATCHES}{rotation}/{host}/")
}

/// Prefix of a host's planned renewals.
pub fn renewals_of(host: &str) -> String {
    format!("{RENEWALS}{host}/")
}

/// The renewal of a host that is not finished, if there is one: [`super::record::OpenBatch`].
pub fn renewing(host: &str) -> String {
    format!("{RENEWING}{host}")
}

/// Host and name of the batch under a key; `None` for other keys.
pub fn host_and_batch(key: &str) -> Option<(&str, &str)> {
    let rest = match key.strip_prefix(BATCHES) {
        Some(rest) => rest.split_once('/')?.1,
        None => key.strip_prefix(RENEWALS)?,
    };
    rest.split_once('/')
}

/// What was issued for the `message`-th CSR message of a batch, from 0: [`super::record::Issued`].
/// By batch before host: these records are large, written once and hardly ever read,
/// and those of one rotation share pages that hold nothing else.
pub fn issued(host: &str, batch: &str, message: usize) -> String {
    format!("{ISSUED}{batch}/{host}/{message:04}")
}

/// Prefix of what was issued for a batch.
pub fn issued_of(host: &str, batch: &str) -> String {
    format!("{ISSUED}{batch}/{host}/")
}

/// Entry `sequence` of the audit chain of one coordinator: [`super::record::AuditEntry`].
pub fn audit(chain: &str, sequence: u64) -> String {
    format!("{AUDIT}{chain}/{sequence:020}")
}

/// The host that a chunk of an inventory is of; `None` for other keys.
pub fn host_of_inventory(key: &str) -> Option<&str> {
    Some(key.strip_prefix(INVENTORIES)?.split_once('/')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_lies_with_its_rotation_and_a_renewal_with_its_host() {
        let key = batch("web-1", "r12.0-5");
        assert!(key.starts_with(&batches_in("r12")) && key.starts_with(&batches_on("web-1", "r12")));
        assert!(!key.starts_with(&batches_in("r1")), "{key}");
        assert_eq!(host_and_batch(&key), Some(("web-1", "r12.0-5")));
        let key = batch("web-1", "n1795507665-5");
        assert!(key.starts_with(&renewals_of("web-1")));
        assert_eq!(host_and_batch(&key), Some(("web-1", "n1795507665-5")));
        assert_eq!(host_and_batch(&host("web-1")), None);
    }

    /// Agents say the names of batches.
    #[test]
    fn no_name_leads_to_another_host() {
        for name in ["r7/web-2/r7.0-5", "r7.0/../web-2", "r.0", "rx.0", "../web-2/n1-1", "", "r7", "R7.0"] {
            let key = batch("web-1", name);
            assert_eq!(host_and_batch(&key).map(|(host, _)| host), Some("web-1"), "{key}");
        }
    }
}
