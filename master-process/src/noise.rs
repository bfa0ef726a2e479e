//! Random bytes for the tests of parsers: the same in each run.

/// A generator of pseudo-random numbers: xorshift.
#[derive(Debug)]
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new() -> Noise {
        Noise(0x9e37_79b9_7f4a_7c15)
    }

    /// A number below this one.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or_default() % end
    }

    /// Fewer than `end` of these pieces, in any order.
    pub(crate) fn some_of(&mut self, pieces: &[&[u8]], end: usize) -> Vec<u8> {
        (0..self.below(end)).flat_map(|_| pieces[self.below(pieces.len())].to_vec()).collect()
    }

    /// Changes up to three bytes.
    pub(crate) fn spoil(&mut self, bytes: &mut [u8]) {
        for _ in 0..self.below(4) {
            if !bytes.is_empty() {
                let at = self.below(bytes.len());
                bytes[at] = u8::try_from(self.below(256)).unwrap_or_default();
            }
        }
    }
}
