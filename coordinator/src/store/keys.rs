//! Every key of the store, in one place.
//!
//! Keys are path-like UTF-8. What belongs to a host begins with its kind and
//! its name, so that hints can be dispatched by host prefix. Numbers are
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
/// Prefix of every [`batch`].
pub const BATCHES: &str = "batch/";
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

/// The durable unit of work, up to 50 targets of one host: [`super::record::Batch`].
pub fn batch(host: &str, batch: &str) -> String {
    format!("{BATCHES}{host}/{batch}")
}

/// Prefix of a host's batches.
pub fn batches_of(host: &str) -> String {
    format!("{BATCHES}{host}/")
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

/// The host a key belongs to, for dispatch; `None` for fleet-wide keys.
pub fn host_of(key: &str) -> Option<&str> {
    let rest = [HOSTS, INVENTORIES, BATCHES].iter().find_map(|prefix| key.strip_prefix(prefix))?;
    Some(rest.split_once('/').map_or(rest, |(host, _)| host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dispatches_by_host() {
        assert_eq!(host_of(&batch("web-1", "r1.0")), Some("web-1"));
        assert_eq!(host_of(&host("web-1")), Some("web-1"));
        assert_eq!(host_of(FLEET), None);
        assert_eq!(host_of(&rotation("r1")), None);
    }
}
