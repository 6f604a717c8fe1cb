//! Disk Paxos (Gafni and Lamport, "Disk Paxos", 2003) for the two sides of one generation on one disk, as a
//! state machine without I/O: it says which sector to write or that it wants to look, and is told what came
//! of it. It is driven by `disk.rs` and by a model checker in `tests/model.rs`.
//!
//! # The protocol
//! Each side owns two sectors of a generation's slot, the two copies of its *block*. A contender picks a
//! ballot above all that it sees and writes it to both copies (*prepare*); then, if it still sees no higher
//! ballot, it writes to both copies that it accepts, under its ballot, the claim accepted under the highest
//! ballot that it sees, its own if there is none (*accept*); then, if it still sees no higher ballot, that
//! claim is decided. A higher ballot in either phase sends it back to the start.
//!
//! # What is added to the paper's protocol
//! - **Two copies**, written one after the other, the one that says least first. A write that a crash tears
//!   spoils one copy and leaves the other as it was, so a slot is never unreadable for a crash.
//! - **One write per look.** Every sector write comes right after a look at the slot, and a phase ends only
//!   with a look that shows both copies as they were written. A process that was frozen, or whose write was
//!   held up on the way to the disk, can so spoil one sector with stale contents before it sees that the
//!   world went on; the other copy still carries what was decided. For the same reason a write that ends in an
//!   error needs no treatment of its own: the look after it reads back what became of it.
//! - **Evidence, not the newest copy.** A reader takes the highest promise and the highest accepted ballot of
//!   all four sectors, whoever wrote them and whichever copy is newer, and repeats what it sees accepted in
//!   the block of its own first phase. It may: what a ballot proposes is unique. It must: its write may replace
//!   the last sector that says so.
//! - **Ballots carry an incarnation**, a random number of each run of the protocol, so that a contender that
//!   crashed and came back never shares a ballot with its former self.
//! - **Learning.** Two looks in a row at a claim accepted in both copies of a side, with nothing higher promised,
//!   show that it is decided. So claiming what is decided writes nothing.
//! - **Generations.** A look that shows any later generation ends the contest: superseded. Sectors of earlier
//!   generations count as vacant.
//!
//! # Why two claims are never decided
//! Let X decide claim v under ballot b. In its last look both of its copies said "b accepted v", and nothing
//! above b was promised. Another contender with a ballot above b therefore wrote its promise after the accept
//! of X was in at least one copy, looks after that, and finds v: whoever writes X's sectors apart from X is
//! another incarnation of the same side, has at most one stale write under way, and sees the other copy
//! before its next. By induction on ballots everything accepted above b is v. A contender with a ballot
//! below b finds b promised and does not decide.
//!
//! # Limits
//! The proof needs, of each side of a generation, at most two processes at a time: the present one, and a former
//! one that is frozen or has a write under way. A torn or unreadable sector and such a stale write are each
//! harmless; both at once are not: a stale write that spoils one copy in the moment in which the other is garbage
//! can hide a promise.

use crate::claim::{Claim, Side};

/// Copies of each side's block.
pub const COPIES: usize = 2;

/// A ballot number. No two runs of the protocol use the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    /// Counts up.
    pub round: u64,
    /// Whose ballot.
    pub side: Side,
    /// Which run of the protocol by that side.
    pub incarnation: u64,
}

/// A claim proposed under a ballot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Accepted {
    /// The ballot (`bal` in the paper).
    pub ballot: Ballot,
    /// What it proposed (`inp` in the paper).
    pub claim: Claim,
}

/// What a contender writes into its sectors (`dblock` in the paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// The contender takes part in no ballot below this one (`mbal` in the paper).
    pub promised: Ballot,
    /// The claim accepted under the highest ballot the contender knows of.
    pub accepted: Option<Accepted>,
}

/// One sector of a generation's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sector {
    /// Not written in this generation.
    Vacant,
    /// Written in this generation.
    Block(Block),
    /// Torn or rotten: it may have been anything.
    Unreadable,
}

/// What was read of the disk: every sector after the [`Step::Look`] that asked for it, in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Look {
    /// The highest generation that any readable sector of the ring carries, if it is later than the
    /// contender's; else any number that is not.
    pub newest: u64,
    /// The sectors of the contender's generation, by [`Side::index`] and copy.
    pub sectors: [[Sector; COPIES]; 2],
}

impl Look {
    fn blocks(&self) -> impl Iterator<Item = Block> {
        self.sectors.iter().flatten().filter_map(|sector| match sector {
            Sector::Block(block) => Some(*block),
            Sector::Vacant | Sector::Unreadable => None,
        })
    }

    fn promised(&self) -> Option<Ballot> {
        self.blocks().map(|block| block.promised).max()
    }

    fn accepted(&self) -> Option<Accepted> {
        self.blocks().filter_map(|block| block.accepted).max_by_key(|accepted| accepted.ballot)
    }

    /// The side none of whose sectors can be read: what it promised and accepted is unknown.
    fn unreadable(&self) -> Option<Side> {
        Side::ALL
            .into_iter()
            .find(|side| self.sectors[side.index()].iter().all(|sector| *sector == Sector::Unreadable))
    }

    /// The claim that a side has accepted under its own ballot in both copies, if nothing higher is promised.
    ///
    /// Two looks, one begun after the other ended, that both show the same settled ballot prove that it is
    /// decided: the claim was in both copies at the end of the first look, and whoever promises more only
    /// after the second will find it there.
    #[must_use]
    pub fn settled(&self) -> Option<Accepted> {
        let highest = self.promised()?;
        self.sectors.iter().find_map(|copies| match copies {
            [Sector::Block(a), Sector::Block(b)] if a == b && a.promised == highest => {
                a.accepted.filter(|accepted| accepted.ballot == highest)
            }
            _ => None,
        })
    }
}

/// What the contender wants done, or how the contest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub enum Step {
    /// Read all sectors, then call [`Contender::looked`].
    Look,
    /// Write `block` into sector `copy` of this side, durably, then go on as for [`Step::Look`]. An error, after
    /// which the write may be on the disk, or not, or get there later, needs nothing else: the look will show.
    Write {
        /// Which of the side's sectors, below [`COPIES`].
        copy: usize,
        /// Its new contents.
        block: Block,
    },
    /// A higher ballot is under way: wait a while, so as not to disturb it, then go on as for [`Step::Look`].
    Preempted,
    /// The end: this claim is decided for the generation, for good.
    Decided(Claim),
    /// The end: this generation is over, a later one has been claimed.
    Superseded(u64),
    /// The end: no sector of this side can be read, so nothing can be decided. Does not come from a crash.
    Unreadable(Side),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// Look whether a claim is decided already; the ballot was settled in the look before.
    Learn(Option<Ballot>),
    /// Phase 1 with this block.
    Prepare(Block),
    /// Phase 2 with this block, accepting this claim.
    Accept(Block, Claim),
}

/// One run of the protocol by one side of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Contender {
    proposal: Claim,
    incarnation: u64,
    stage: Stage,
}

impl Contender {
    /// Starts to claim `proposal`, under ballots of `incarnation`, a number that no other run for this side
    /// and generation uses, not even one with the same token. The first step is [`Step::Look`].
    #[must_use]
    pub const fn new(proposal: Claim, incarnation: u64) -> Self {
        Self { proposal, incarnation, stage: Stage::Learn(None) }
    }

    /// What this contender proposes.
    #[must_use]
    pub const fn proposal(&self) -> &Claim {
        &self.proposal
    }

    /// The look asked for is complete.
    pub fn looked(&mut self, look: &Look) -> Step {
        if look.newest > self.proposal.generation {
            return Step::Superseded(look.newest);
        }
        if let Some(side) = look.unreadable() {
            self.stage = Stage::Learn(None);
            return Step::Unreadable(side);
        }
        match self.stage {
            Stage::Learn(before) => self.learn(before, look),
            Stage::Prepare(block) => self.prepare(block, look),
            Stage::Accept(block, claim) => self.propagate(block, look).unwrap_or(Step::Decided(claim)),
        }
    }

    /// Either a claim is decided already, or a new ballot begins.
    fn learn(&mut self, before: Option<Ballot>, look: &Look) -> Step {
        if let Some(settled) = look.settled() {
            if before == Some(settled.ballot) {
                return Step::Decided(settled.claim);
            }
            self.stage = Stage::Learn(Some(settled.ballot));
            return Step::Look;
        }
        let promised = Ballot {
            round: look.promised().map_or(1, |highest| highest.round.saturating_add(1)),
            side: self.proposal.side,
            incarnation: self.incarnation,
        };
        self.prepare(Block { promised, accepted: None }, look)
    }

    /// Phase 1. The block repeats what the look shows accepted: this write may replace the last sector that
    /// says so, if that is a sector of this side written by another incarnation.
    fn prepare(&mut self, block: Block, look: &Look) -> Step {
        let block = Block { accepted: look.accepted(), ..block };
        self.stage = Stage::Prepare(block);
        if let Some(step) = self.propagate(block, look) {
            return step;
        }
        let claim = block.accepted.map_or(self.proposal, |accepted| accepted.claim);
        let accepted = Some(Accepted { ballot: block.promised, claim });
        let block = Block { accepted, ..block };
        self.stage = Stage::Accept(block, claim);
        self.write(block, look)
    }

    /// What is still to do until both copies carry `block`; `None` when they do and no higher ballot is seen.
    fn propagate(&mut self, block: Block, look: &Look) -> Option<Step> {
        if look.promised().is_some_and(|highest| highest > block.promised) {
            self.stage = Stage::Learn(None);
            return Some(Step::Preempted);
        }
        let own = look.sectors[self.proposal.side.index()];
        (own != [Sector::Block(block); COPIES]).then(|| self.write(block, look))
    }

    /// Writes the copy that says least, so that a crash in this write leaves the better one alone.
    fn write(&self, block: Block, look: &Look) -> Step {
        let own = &look.sectors[self.proposal.side.index()];
        let says = |sector: Sector| match sector {
            Sector::Unreadable => (false, None),
            Sector::Vacant => (true, None),
            Sector::Block(block) => {
                (true, Some((block.accepted.map(|accepted| accepted.ballot), block.promised)))
            }
        };
        let outdated = (0..COPIES).filter(|copy| own[*copy] != Sector::Block(block));
        let copy = outdated.min_by_key(|copy| says(own[*copy])).unwrap_or(0);
        Step::Write { copy, block }
    }
}
