//! Which payload an acknowledgement is for.

use std::collections::{BTreeMap, VecDeque};

/// Results told in this session and not acknowledged yet: payloads in the order
/// in which they went, one for each time they went, because an acknowledgement
/// names the batch only.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<String, VecDeque<Vec<u8>>>);

impl Told {
    /// Is this what went last of the batch?
    pub fn is_last(&self, batch: &str, payload: &[u8]) -> bool {
        self.0.get(batch).and_then(VecDeque::back).is_some_and(|last| last == payload)
    }

    /// A payload went.
    pub fn sent(&mut self, batch: &str, payload: Vec<u8>) {
        self.0.entry(batch.to_owned()).or_default().push_back(payload);
    }

    /// The payload that an acknowledgement is for.
    pub fn acknowledged(&mut self, batch: &str) -> Option<Vec<u8>> {
        let sent = self.0.get_mut(batch)?;
        let payload = sent.pop_front();
        if sent.is_empty() {
            self.0.remove(batch);
        }
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_acknowledgement_is_for_one_that_went() {
        let mut told = Told::default();
        let (first, late) = (vec![1], vec![2]);
        assert!(!told.is_last("r1.0", &first));
        // Told at the start of the session, and again because it was ordered again.
        told.sent("r1.0", first.clone());
        assert!(told.is_last("r1.0", &first));
        told.sent("r1.0", first.clone());
        // Then the proof was completed.
        assert!(!told.is_last("r1.0", &late));
        told.sent("r1.0", late.clone());
        assert_eq!(told.acknowledged("r1.0"), Some(first.clone()));
        assert_eq!(told.acknowledged("r1.0"), Some(first), "the late one is still on its way");
        assert_eq!(told.acknowledged("r1.0"), Some(late));
        assert_eq!((told.acknowledged("r1.0"), told.acknowledged("r2.0")), (None, None));
    }
}
