//! The only source of chance in a simulation: SplitMix64, seeded once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Shared by everything that happens in one seed; drawn from in one order.
#[derive(Clone)]
pub struct Random(Arc<Mutex<u64>>);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    /// The next number.
    pub fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is not 0.
    pub fn below(&self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True so many times in a hundred.
    pub fn percent(&self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of them.
    pub fn pick<'a, T>(&self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    /// Between two numbers of milliseconds.
    pub fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    /// Between two numbers of seconds, finer than a second.
    pub fn seconds(&self, from: u64, to: u64) -> Duration {
        self.millis(from * 1000, to * 1000)
    }

    /// Bytes that look random.
    pub fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for eight in bytes.chunks_mut(8) {
            eight.copy_from_slice(&self.next().to_be_bytes());
        }
        bytes
    }
}
