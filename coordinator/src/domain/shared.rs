//! Keys that lie on several hosts: one stolen host exposes all of them.
//!
//! A fleet has more keys than one wants to hold at once. They are looked through in parts,
//! each time all of them, and of each part only hashes and numbers of hosts are kept.

/// Length of a key's hash (SHA-256 over its SubjectPublicKeyInfo), bytes.
pub type Hash = [u8; 32];

/// A search under way: every key is offered once for each part.
pub struct Search {
    part: u32,
    parts: u32,
    seen: Vec<(Hash, u32)>,
}

/// A key and the hosts that have it, by number, two or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// The key's hash.
    pub key: Hash,
    /// The hosts, each once, in order.
    pub hosts: Vec<u32>,
}

impl Search {
    /// For about so many keys, of which `at_once` are held at a time.
    pub fn new(keys: u64, at_once: u64) -> Self {
        let parts = u32::try_from(keys.div_ceil(at_once.max(1))).unwrap_or(u32::MAX);
        Self { part: 0, parts: parts.max(1), seen: Vec::new() }
    }

    /// A key on a host; what is no hash, or not of this part, is passed over.
    pub fn offer(&mut self, host: u32, key: &[u8]) {
        let Ok(key) = Hash::try_from(key) else { return };
        let first = u32::from_be_bytes([key[0], key[1], key[2], key[3]]);
        if first % self.parts == self.part {
            self.seen.push((key, host));
        }
    }

    /// What this part has shared; true while there is another part to be offered.
    pub fn take(&mut self) -> (Vec<Sharing>, bool) {
        let mut seen = std::mem::take(&mut self.seen);
        seen.sort_unstable();
        seen.dedup();
        let shared = seen.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1);
        let shared = shared
            .map(|same| Sharing { key: same[0].0, hosts: same.iter().map(|(_, host)| *host).collect() })
            .collect();
        self.part += 1;
        (shared, self.part < self.parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn all(keys: &[(u8, u32)], parts: u64) -> Vec<Sharing> {
        let mut search = Search::new(parts, 1);
        let mut found = Vec::new();
        loop {
            for (key, host) in keys {
                let mut hash = [*key; 32];
                hash[3] = key.wrapping_mul(7);
                search.offer(*host, &hash);
            }
            let (part, more) = search.take();
            found.extend(part);
            if !more {
                found.sort_by_key(|sharing| sharing.key);
                return found;
            }
        }
    }

    #[test]
    fn twice_on_one_host_is_not_shared() {
        let found = all(&[(1, 0), (1, 0), (2, 0), (2, 1), (3, 5)], 1);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].hosts, [0, 1]);
        let mut search = Search::new(1, 1);
        search.offer(0, &[]);
        search.offer(1, &[]);
        search.offer(1, &[7; 31]);
        assert_eq!(search.take(), (Vec::new(), false), "no hash is no key");
    }

    proptest! {
        #[test]
        fn parts_add_up(keys in proptest::collection::vec((0u8..20, 0u32..5), 0..60), parts in 1u64..9) {
            let mut hosts = BTreeMap::<u8, std::collections::BTreeSet<u32>>::new();
            for (key, host) in &keys {
                hosts.entry(*key).or_default().insert(*host);
            }
            let wanted = hosts.values().filter(|hosts| hosts.len() > 1).count();
            let found = all(&keys, parts);
            prop_assert_eq!(found.len(), wanted);
            prop_assert_eq!(found, all(&keys, 1));
        }
    }
}
