//! A toy guest: a state that every input stirs, and outputs that depend on all inputs so far.

/// The deterministic machine in small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Guest {
    state: u64,
    /// All outputs it ever made, by number.
    pub(super) outputs: Vec<u64>,
}

impl Guest {
    /// Takes one input. True if that made an output.
    pub(super) fn step(&mut self, input: u64) -> bool {
        // SplitMix64's finaliser: any difference in the past shows in every later state.
        let mut mixed = (self.state ^ input).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.state = mixed ^ (mixed >> 31);
        let output = self.state % 5 < 2;
        if output {
            self.outputs.push(self.state);
        }
        output
    }

    /// Stands for the divergence digest.
    pub(super) const fn digest(&self) -> u64 {
        self.state
    }
}
