//! Maps whose keys are numbers that this program or the kernel counts up: serials, inode numbers.
//!
//! The hash of the standard library resists keys that an attacker chooses, and takes tens of nanoseconds. These keys
//! nobody chooses, and an answer about a thousand workers looks up several thousand.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Such a map.
pub type ByNumber<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// Gives numbers that follow each other places that follow each other, in blocks: what is looked up one number after the
/// other lies together in memory. The blocks are spread by a multiplication.
#[derive(Debug, Default, Clone, Copy)]
pub struct NumberHasher(u64);

/// The numbers of a block, less one.
const IN_BLOCK: u64 = 63;

/// The bits by which a map tells the keys at one place apart.
const TAG: u64 = 0x7f << 57;

/// 2⁶⁴ divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl NumberHasher {
    /// Keys of several numbers get no order.
    fn add(&mut self, number: u64) {
        self.0 = self.0.wrapping_mul(SPREAD).rotate_left(32) ^ number;
    }
}

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        let number = self.0;
        let block = (number & !IN_BLOCK).wrapping_mul(SPREAD) >> 32;
        let tag = number.wrapping_mul(SPREAD) & TAG;
        tag | (block << 6 | number & IN_BLOCK) & !TAG
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.add((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.add(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    fn hash(number: u64) -> u64 {
        BuildHasherDefault::<NumberHasher>::default().hash_one(number)
    }

    /// A map takes its places from the low bits, and tells keys apart by the seven highest ones.
    #[test]
    fn numbers_have_places_of_their_own() {
        for step in [1, 2, 3, 16, 64, 100, 1 << 12, 1 << 16, 1 << 32] {
            let hashes: Vec<u64> = (0..2048).map(|number| hash(7 + number * step)).collect();
            let places: HashSet<u64> = hashes.iter().map(|hash| hash % 4096 / 16).collect();
            assert!(places.len() >= 32, "{} groups of places of 256 with a step of {step}", places.len());
            let tags: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
            assert!(tags.len() > 60, "{} tags of 128 with a step of {step}", tags.len());
        }
    }

    #[test]
    fn numbers_that_follow_each_other_lie_beside_each_other() {
        let beside = (0..10_000).filter(|number| hash(*number) % 2048 + 1 == hash(number + 1) % 2048).count();
        assert!(beside > 9_800, "{beside}");
    }
}
