//! The client's thread: all connections in one loop.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::connection::{Connection, Rhythm};
use super::ledger::Ledger;
use super::{Load, Report, Shared};
use crate::process::pin_this_thread;
use crate::random::Random;

/// Longest sleep: how soon a wish to stop is seen.
const NAP: Duration = Duration::from_millis(5);

/// Works until told to stop.
pub(super) fn work(load: &Load, shared: &Shared) -> anyhow::Result<Report> {
    if let Some(core) = load.core {
        // A machine with fewer cores runs it anywhere.
        let _ = pin_this_thread(core);
    }
    let mut work = Work::new(load, shared);
    while !shared.stop.load(Ordering::Relaxed) {
        if shared.abandon.load(Ordering::Relaxed) {
            return Ok(work.report());
        }
        work.turn(true);
    }
    let deadline = Instant::now() + load.patience;
    while !work.connections.iter().all(Connection::settled) && Instant::now() < deadline {
        if shared.abandon.load(Ordering::Relaxed) {
            return Ok(work.report());
        }
        work.turn(false);
    }
    let mut report = work.report();
    if let Err(error) = report.read_back(load.server, load.patience) {
        report.unreachable = Some(format!("{error:#}"));
    }
    Ok(report)
}

struct Work<'a> {
    shared: &'a Shared,
    connections: Vec<Connection>,
    random: Random,
    report: Report,
}

impl<'a> Work<'a> {
    fn new(load: &Load, shared: &'a Shared) -> Self {
        let now = Instant::now();
        let make = |number: usize, rhythm, first| {
            // The seed makes keys of two clients of one server differ.
            Connection::new(format!("{:x}.{number}", load.seed & 0xffff_ffff), load.server, rhythm, first)
        };
        let busy = (0..load.busy).map(|number| make(number, Rhythm::Busy(load.depth), now));
        let paced = (0..load.paced).map(|number| {
            let first = now + load.pace * number as u32 / load.paced as u32;
            make(load.busy + number, Rhythm::Paced(load.pace), first)
        });
        Self {
            shared,
            connections: busy.chain(paced).collect(),
            random: Random::new(load.seed),
            report: Report { stragglers: load.stragglers, ..Report::default() },
        }
    }

    /// Sends what is due, waits for something to do, reads what has come.
    fn turn(&mut self, more: bool) {
        let now = Instant::now();
        for connection in &mut self.connections {
            connection.send(now, more, &mut self.random);
        }
        let mut polls: Vec<_> = self.connections.iter().map(Connection::poll_entry).collect();
        let due = self.connections.iter().filter_map(Connection::due).min();
        wait(&mut polls, due.map_or(NAP, |due| due.saturating_duration_since(now).min(NAP)));
        let now = Instant::now();
        let mut any = false;
        for (number, (connection, poll)) in self.connections.iter_mut().zip(&polls).enumerate() {
            if poll.revents & !libc::POLLOUT == 0 {
                continue;
            }
            let report = &mut self.report;
            if connection.receive(now, |violation| report.keep(violation)) {
                let nanos = now.saturating_duration_since(self.shared.epoch).as_nanos() as u64;
                self.shared.replied[number].store(nanos.max(1), Ordering::Relaxed);
                any = true;
            }
        }
        if any {
            self.report.replies.push(now);
            self.shared.acked.store(self.acked(), Ordering::Relaxed);
        }
    }

    fn ledgers(&self) -> impl Iterator<Item = &Ledger> {
        self.connections.iter().flat_map(|connection| connection.closed.iter().chain([&connection.ledger]))
    }

    fn acked(&self) -> u64 {
        self.ledgers().map(Ledger::acked).sum()
    }

    fn report(self) -> Report {
        let connections_lost = self.connections.iter().map(|connection| connection.lost).sum();
        let acked = self.acked();
        let ledgers = self.connections.into_iter();
        let ledgers = ledgers.flat_map(|connection| connection.closed.into_iter().chain([connection.ledger]));
        Report { acked, connections_lost, ledgers: ledgers.collect(), ..self.report }
    }
}

fn wait(polls: &mut [libc::pollfd], patience: Duration) {
    let patience =
        libc::timespec { tv_sec: 0, tv_nsec: patience.as_nanos().min(999_999_999) as libc::c_long };
    // SAFETY: valid entries, as many as said, and a valid time. An interruption is as good as a time-out.
    unsafe {
        libc::ppoll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, &raw const patience, std::ptr::null())
    };
}
