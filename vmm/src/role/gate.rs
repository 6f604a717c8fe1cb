//! The Output Rule ("the paper", section 2.2): nothing leaves before the log that led to it is acknowledged,
//! and, our addition, before a lease says that the backup is not live.
//!
//! The gate counts; the outputs themselves wait in a queue of the host, in the same order. Outputs are
//! numbered from zero. It allocates once, when it is made.

use super::lease::Lease;
use super::moment::Moment;
use super::timing::Timing;

/// Which outputs may leave.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gate {
    /// The sequence number that output `n` waits for, at `n % ring.len()`.
    ring: Box<[u64]>,
    /// Outputs bound so far: the number of the next.
    bound: u64,
    /// Outputs up to here have an acknowledged log.
    cleared: u64,
    /// Outputs up to here have left.
    released: u64,
    acked: u64,
    /// The newest sequence number bound, so that outputs never wait for less than their predecessors.
    newest: u64,
    lease: Lease,
    rule: Rule,
}

/// What lets an output out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Nothing does.
    Shut,
    /// An acknowledgement and a lease.
    Leased,
    /// Every output may leave at once: there is no backup that could contradict it.
    Open,
}

/// No room for another waiting output: the guest must wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the output gate is full: {0} outputs wait")]
pub struct GateFull(
    /// Outputs waiting, the gate's capacity.
    pub u64,
);

impl Gate {
    /// A gate with room for `capacity` waiting outputs (at least one), shut.
    #[must_use]
    pub fn new(timing: &Timing, capacity: usize) -> Self {
        Self {
            ring: vec![0; capacity.max(1)].into_boxed_slice(),
            bound: 0,
            cleared: 0,
            released: 0,
            acked: 0,
            newest: 0,
            lease: Lease::new(timing),
            rule: Rule::Shut,
        }
    }

    /// Binds the next output to the log batch that carries its marker, and says the output's number.
    ///
    /// # Errors
    /// All slots wait; nothing was bound.
    pub fn bind(&mut self, sequence: u64) -> Result<u64, GateFull> {
        if self.held() == self.ring.len() as u64 {
            return Err(GateFull(self.held()));
        }
        self.newest = self.newest.max(sequence);
        let number = self.bound;
        let slot = self.slot(number);
        self.ring[slot] = self.newest;
        self.bound += 1;
        self.clear();
        Ok(number)
    }

    /// The backup has received the log up to `sequence`. Order and repetition do not matter.
    pub fn on_ack(&mut self, sequence: u64) {
        if sequence > self.acked {
            self.acked = sequence;
            self.clear();
        }
    }

    /// The backup echoed a stamp of this side: see [`Lease::on_echo`].
    pub fn on_echo(&mut self, now: Moment, stamp: Moment) {
        self.lease.on_echo(now, stamp);
    }

    /// All outputs with a number below this may leave at `now`. Ask with a fresh clock right before sending:
    /// the answer is good for [`Timing::slack`].
    #[must_use]
    pub fn releasable(&self, now: Moment) -> u64 {
        match self.rule {
            Rule::Open => self.bound,
            Rule::Leased if self.lease.valid(now) => self.cleared.max(self.released),
            Rule::Leased | Rule::Shut => self.released,
        }
    }

    /// Until when an output may leave, if all before it have left and its log is acknowledged: what [`Self::releasable`]
    /// would say of it. Ask anew whenever anything has changed.
    #[must_use]
    pub fn leased_until(&self) -> Moment {
        match self.rule {
            Rule::Open => Moment::from_nanos(u64::MAX),
            Rule::Leased => self.lease.until(),
            Rule::Shut => Moment::ZERO,
        }
    }

    /// All outputs with a number below `number` have left the host: their last byte is sent.
    pub fn released(&mut self, number: u64) {
        self.released = self.released.max(number.min(self.bound));
        self.cleared = self.cleared.max(self.released);
    }

    /// Outputs that wait.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.bound - self.released
    }

    /// Outputs that have left.
    #[must_use]
    pub const fn gone(&self) -> u64 {
        self.released
    }

    /// The newest acknowledged sequence number of this generation.
    #[must_use]
    pub const fn acked(&self) -> u64 {
        self.acked
    }

    /// The lease as it stands.
    #[must_use]
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The rule in force.
    #[must_use]
    pub const fn rule(&self) -> Rule {
        self.rule
    }

    pub(super) fn shut(&mut self) {
        self.rule = Rule::Shut;
    }

    pub(super) fn open(&mut self) {
        self.rule = Rule::Open;
    }

    /// A backup joined: its log starts after sequence number zero. What waits already needs no ack of it.
    pub(super) fn protect(&mut self, timing: &Timing) {
        self.rule = Rule::Leased;
        self.lease = Lease::new(timing);
        self.acked = 0;
        self.newest = 0;
        self.cleared = self.bound;
    }

    fn clear(&mut self) {
        while self.cleared < self.bound && self.ring[self.slot(self.cleared)] <= self.acked {
            self.cleared += 1;
        }
    }

    const fn slot(&self, number: u64) -> usize {
        (number % self.ring.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(nanos: u64) -> Moment {
        Moment::from_nanos(nanos)
    }

    fn leased(capacity: usize) -> Gate {
        let timing = Timing::default();
        let mut gate = Gate::new(&timing, capacity);
        gate.protect(&timing);
        gate
    }

    #[test]
    fn an_output_needs_its_ack_and_the_lease() {
        let mut gate = leased(4);
        assert_eq!(gate.bind(1), Ok(0));
        assert_eq!(gate.bind(3), Ok(1));
        gate.on_ack(2);
        assert_eq!(gate.releasable(at(1)), 0, "no lease");
        gate.on_echo(at(1), at(1));
        assert_eq!(gate.releasable(at(2)), 1, "second is not acknowledged");
        assert_eq!(gate.releasable(at(1) + Timing::default().lease()), 0, "the lease is over");
        gate.released(1);
        gate.on_ack(3);
        assert_eq!(gate.releasable(at(2)), 2);
        gate.shut();
        assert_eq!(gate.releasable(at(2)), 1);
        gate.open();
        assert_eq!(gate.releasable(at(2)), 2);
    }

    #[test]
    fn an_output_may_pass_by_the_gate_while_it_would_be_let_through() {
        let mut gate = leased(4);
        assert_eq!(gate.leased_until(), Moment::ZERO, "no lease");
        gate.on_echo(at(1), at(1));
        assert_eq!(gate.leased_until(), at(1) + Timing::default().lease());
        gate.shut();
        assert_eq!(gate.leased_until(), Moment::ZERO);
        gate.open();
        assert_eq!(gate.leased_until(), at(u64::MAX), "nobody else runs the machine");
    }

    #[test]
    fn a_full_gate_says_so_and_binds_nothing() {
        let mut gate = leased(2);
        gate.bind(1).unwrap();
        gate.bind(2).unwrap();
        assert_eq!(gate.bind(3), Err(GateFull(2)));
        gate.on_ack(1);
        gate.on_echo(at(0), at(0));
        gate.released(gate.releasable(at(0)));
        assert_eq!(gate.bind(3), Ok(2));
    }

    #[test]
    fn a_later_output_never_overtakes() {
        let mut gate = leased(4);
        gate.bind(5).unwrap();
        gate.bind(2).unwrap();
        gate.on_ack(4);
        gate.on_echo(at(0), at(0));
        assert_eq!(gate.releasable(at(0)), 0);
    }

    #[derive(Clone, Debug)]
    enum Do {
        Bind(u64),
        Ack(u64),
        Release,
    }

    proptest! {
        /// Against a list of all outputs and their sequence numbers.
        #[test]
        fn equals_the_plain_list(
            capacity in 1usize..8,
            steps in proptest::collection::vec(prop_oneof![
                (0u64..3).prop_map(Do::Bind), (0u64..60).prop_map(Do::Ack), Just(Do::Release),
            ], 1..200),
        ) {
            let mut gate = leased(capacity);
            gate.on_echo(at(0), at(0));
            let (mut list, mut acked, mut sequence, mut gone) = (Vec::new(), 0, 0, 0u64);
            for step in steps {
                match step {
                    Do::Bind(rise) => {
                        sequence += rise;
                        match gate.bind(sequence) {
                            Ok(number) => {
                                prop_assert_eq!(number, list.len() as u64);
                                list.push(sequence);
                            }
                            Err(GateFull(held)) => {
                                prop_assert_eq!(held, capacity as u64);
                                prop_assert_eq!(list.len() as u64 - gone, capacity as u64);
                            }
                        }
                    }
                    Do::Ack(sequence) => {
                        acked = acked.max(sequence);
                        gate.on_ack(sequence);
                    }
                    Do::Release => {
                        gone = gate.releasable(at(0));
                        gate.released(gone);
                    }
                }
                let free = list.iter().take_while(|bound| **bound <= acked).count() as u64;
                prop_assert_eq!(gate.releasable(at(0)), free);
                prop_assert_eq!(gate.held(), list.len() as u64 - gone);
            }
        }
    }
}
