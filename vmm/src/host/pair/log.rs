//! The log of a primary, and the outputs that depend on it.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use tandem_logchan::frame::{Flags, HEADER_LEN, Kind};
use tandem_logchan::primary::{AppendError, LogSender};
use tandem_logchan::transport::SendHalf;

use super::PairError;
use super::clock::now;
use super::gated::{GateSender, notice};
use super::passage::{Left, Passage};
use super::shared::{Order, Shared};
use crate::host::io::disk::Disks;
use crate::host::tap::Tap;
use crate::machine::output::{DiskOp, DiskRequest, Notice, Outputs, Packet};
use crate::machine::virtio::net::offload::Offloads;
use crate::replay::batch::{Batch, Traffic};
use crate::replay::recorder::Log;
use crate::replay::run::Run;
use crate::role::Moment;

/// How long to wait for room in a full log before looking at the orders again.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// Half of the log's room waits for the network: soon the guest would. Until then to pack a forced stop is not worth the
/// guest's time, which stands still meanwhile.
const SCARCE: usize = 2;

/// The longest pause at a time that slows a primary whose backup lags.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// The log of a machine that leads: sent to a backup, or none once it is alone.
pub(super) struct PairLog {
    pub(super) gate: GateSender,
    sender: Option<LogSender<Box<dyn SendHalf>>>,
    shared: Arc<Shared>,
    taps: Vec<Arc<Tap>>,
    /// For packets and writes whose log is acknowledged already.
    passage: Option<Passage>,
    /// For requests that need not wait; `None`: they all go through the gate.
    disks: Option<Arc<Disks>>,
    /// The first frame that an output waits for which went into the gate since the recorder last asked.
    held: Option<u64>,
    /// Outputs wait for the next batch, not for the last one.
    next: bool,
    /// Outputs that somebody waits for, and that wait for the next batch, were made since the last commit.
    urgent: bool,
    /// Outputs that somebody waits for were made since the recorder last asked.
    made: bool,
    /// When the last batch was committed, in nanoseconds of this side's clock.
    last: u64,
}

impl PairLog {
    pub(super) fn new(
        gate: GateSender,
        sender: Option<LogSender<Box<dyn SendHalf>>>,
        shared: Arc<Shared>,
        taps: Vec<Arc<Tap>>,
    ) -> Self {
        let last = now().as_nanos();
        Self {
            gate,
            sender,
            shared,
            taps,
            passage: None,
            disks: None,
            held: None,
            next: true,
            urgent: false,
            made: false,
            last,
        }
    }

    /// From now on packets may leave by themselves, and writes.
    pub(super) fn open_passage(&mut self, passage: Passage) {
        self.passage = Some(passage);
    }

    /// From now on disk requests that need not wait are issued by this thread.
    pub(super) fn open_disks(&mut self, disks: Arc<Disks>) {
        self.disks = Some(disks);
    }

    /// The frame after the last one sent. Alone, there is none to wait for.
    fn next_sequence(&self) -> u64 {
        self.sender.as_ref().map_or(0, |sender| sender.sent() + 1)
    }

    /// The frame that outputs made now wait for.
    fn awaited(&mut self) -> u64 {
        self.made = true;
        self.urgent |= self.next;
        if self.next { self.next_sequence() } else { self.sent() }
    }

    /// Number of the last frame sent.
    pub(super) fn sent(&self) -> u64 {
        self.sender.as_ref().map_or(0, LogSender::sent)
    }

    /// Sends a payload that is no batch, ahead of the log.
    pub(super) fn send_state(&mut self, payload: &[u8]) -> Result<(), PairError> {
        if let Some(sender) = &mut self.sender {
            let sent = sender.append_bytes(Kind::State, Flags::OUTPUT, now().as_nanos(), payload);
            if let Err(AppendError::Loss(loss)) = sent {
                return Err(loss.into());
            }
        }
        Ok(())
    }

    /// From now on there is no backup.
    pub(super) fn go_alone(&mut self) {
        self.let_go();
        self.sender = None;
        self.passage = None;
        self.gate.seal(0, now());
        self.shared.wake_side();
    }

    /// Slows the guest a little when the backup lags. `flushed`: the time now.
    fn pause(&mut self, flushed: Moment) {
        let level = u64::from(self.shared.throttle.load(Ordering::Relaxed).min(99));
        let until = flushed.as_nanos();
        let last = std::mem::replace(&mut self.last, until);
        if level > 0 {
            // A share of `level` per cent of the time, from the time that the guest had.
            let pause = Duration::from_nanos(until.saturating_sub(last) * level / (100 - level));
            std::thread::sleep(pause.min(LONGEST_PAUSE));
            self.last = now().as_nanos();
            self.shared.paused.fetch_add(self.last.saturating_sub(until), Ordering::Relaxed);
        }
    }

    /// Packets that may leave by themselves do so; if the lease does not hold, they go into the gate.
    fn let_go(&mut self) {
        let Some(passage) = self.passage.as_mut().filter(|passage| passage.is_waiting()) else { return };
        if let Some(left) = passage.leave() {
            self.gate.passed(&left);
            return;
        }
        let (sequence, packets) = passage.stranded();
        let made = now();
        for (nic, packet) in packets {
            self.gate.packet(nic, &packet, sequence, made);
        }
        passage.forget();
        self.held.get_or_insert(sequence);
    }

    /// Whether outputs made now wait neither for the next batch nor for others at the gate.
    fn may_pass(&self) -> bool {
        !self.next && self.gate.is_empty()
    }

    /// Whether a packet will leave with the next [`Self::let_go`].
    fn passes(&mut self, nic: u8, packet: &Packet<'_>, sequence: u64) -> bool {
        self.may_pass() && self.passage.as_mut().is_some_and(|passage| passage.take(nic, packet, sequence))
    }

    /// Issues a read or a flush, if all requests before it have left.
    ///
    /// Neither is an output of the Output Rule: nobody can tell that it was made, and a backup that goes live without having heard of
    /// what it came from loses nothing by it. A write is one: such a backup would find it on the disk.
    fn issues(&self, request: &DiskRequest<'_>) -> bool {
        !matches!(request.op, DiskOp::Write { .. })
            && self.gate.is_empty()
            && self.disks.as_ref().is_some_and(|disks| disks.issue(request))
    }

    /// Issues a write whose log, up to frame `sequence`, is acknowledged, by the rule of the gate. Packets before it must have left.
    fn issues_write(&mut self, request: &DiskRequest<'_>, sequence: u64) -> bool {
        if !self.may_pass() {
            return false;
        }
        let (Some(disks), Some(passage)) = (&self.disks, &mut self.passage) else { return false };
        let Some(turn) = passage.admits(sequence) else { return false };
        let issued = disks.issue(request);
        if issued {
            self.gate.passed(&Left { outputs: 1, turn, left: now(), queued: 0 });
        }
        issued
    }

    /// Whether the side thread will look into the gate by itself: it waits for acks, and that of frame `first` is to come.
    fn is_expected(&self, sender: &LogSender<Box<dyn SendHalf>>, first: u64) -> bool {
        // Pairs with those in the side thread, before it looks into the gate.
        fence(Ordering::SeqCst);
        self.shared.listening.load(Ordering::Relaxed) && sender.acks().received() < first
    }

    /// The channel is lost: the guest stands still until the arbiter has spoken.
    fn wait_for_verdict(&mut self) {
        if self.shared.wait_for_other(&[Order::Run, Order::Stop, Order::Wait]) == Order::Alone {
            self.go_alone();
        }
        // Otherwise it is Halt, which makes the loop leave.
    }
}

impl Outputs for PairLog {
    fn packet(&mut self, nic: u8, packet: &Packet<'_>) {
        let sequence = self.awaited();
        if self.passes(nic, packet, sequence) {
            return;
        }
        // Those before it first. If there were too many for one burst, there is room for it then.
        self.let_go();
        if !self.passes(nic, packet, sequence) {
            self.held.get_or_insert(sequence);
            self.gate.packet(nic, packet, sequence, now());
        }
    }

    fn offloads(&mut self, nic: u8, to_guest: Offloads) {
        // No output: nothing leaves the host by it.
        if let Some(tap) = self.taps.get(usize::from(nic)) {
            tap.follow(to_guest);
        }
    }

    fn disk(&mut self, request: DiskRequest<'_>) {
        if self.issues(&request) {
            return;
        }
        let sequence = self.awaited();
        self.let_go();
        if !self.issues_write(&request, sequence) {
            self.held.get_or_insert(sequence);
            self.gate.disk(&request, sequence, now());
        }
    }

    fn serial(&mut self, byte: u8) {
        self.gate.terminal(&[byte]);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.gate.terminal(bytes);
    }

    fn notice(&mut self, event: Notice) {
        notice(event);
    }
}

impl Log for PairLog {
    type Error = PairError;

    fn enabled(&self) -> bool {
        self.sender.is_some()
    }

    fn urgent(&self) -> bool {
        self.urgent
    }

    fn waiting(&self) -> bool {
        self.urgent || self.gate.has_typed()
    }

    fn scarce(&self) -> bool {
        self.sender.as_ref().is_some_and(|sender| sender.queued() > sender.capacity() / SCARCE)
    }

    fn wait_for_next(&mut self, next: bool) {
        self.next = next;
        self.gate.kicked(None);
    }

    fn kicked(&mut self) {
        self.gate.kicked(Some(now()));
        if let Some(passage) = &mut self.passage {
            passage.kicked();
        }
    }

    fn made_outputs(&mut self) -> bool {
        self.let_go();
        let (made, held) = (std::mem::take(&mut self.made), std::mem::take(&mut self.held));
        if made && let Some(passage) = &mut self.passage {
            passage.settle();
        }
        if made && let Some(sender) = &self.sender {
            // While no output waits for the batch to come, acks alone need not wake the side thread.
            self.shared.quiet.store(!self.urgent, Ordering::Release);
            if let Some(first) = held
                && !self.is_expected(sender, first)
            {
                self.shared.wake_side();
            }
        }
        made
    }

    fn commit(&mut self, batch: &Batch) -> Result<usize, PairError> {
        self.let_go();
        self.gate.seal(self.next_sequence(), now());
        self.urgent = false;
        loop {
            let Some(sender) = &mut self.sender else { return Ok(0) };
            let seen = sender.acks().news().look();
            let encoded = |sequence| self.shared.marks.encoded(sequence, now());
            match sender.append_and(Kind::Batch, Flags::OUTPUT, now().as_nanos(), batch, encoded) {
                Ok(sent) => {
                    let flushed = now();
                    self.shared.marks.flushed(sent, flushed);
                    self.shared.sent.store(sent, Ordering::Relaxed);
                    self.shared.log_full.store(false, Ordering::Relaxed);
                    self.pause(flushed);
                    return Ok(HEADER_LEN);
                }
                Err(AppendError::Full { .. }) => {
                    self.shared.log_full.store(true, Ordering::Relaxed);
                    if self.shared.quiet.swap(false, Ordering::AcqRel) {
                        self.shared.wake_side();
                    }
                    sender.acks().news().wait(seen, Some(FULL_PAUSE));
                    // What is queued goes out as the network takes it; errors show at the next append.
                    let _ = sender.flush();
                    match self.shared.order() {
                        Order::Alone => self.go_alone(),
                        Order::Halt => return Ok(0),
                        _ => {}
                    }
                }
                Err(AppendError::Loss(loss)) => {
                    tracing::debug!(%loss, "the log cannot be sent");
                    self.wait_for_verdict();
                    return Ok(0);
                }
                // The other side takes over from where the log ends.
                Err(AppendError::Encode(source)) => return Err(PairError::Batch(source)),
            }
        }
    }

    fn observe(&mut self, run: &Run, traffic: &Traffic) {
        self.shared.counters.update(run, traffic);
    }

    fn idle(&mut self) {
        if self.sender.is_some() && self.shared.order() == Order::Alone {
            self.go_alone();
        }
        if self.sender.is_none() && (self.urgent || self.gate.has_typed()) {
            self.gate.seal(0, now());
            self.urgent = false;
            self.shared.wake_side();
        }
    }
}
