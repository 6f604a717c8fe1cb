//! The client's thread: all connections in one loop.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::connection::{Connection, Rhythm};
use super::ledger::{Ledger, Violation};
use super::resp::{Parser, Reply, request};
use super::{Load, Report, Shared};
use crate::process::pin_this_thread;
use crate::random::Random;

/// Violations kept word by word.
const KEPT: usize = 8;
/// Longest sleep: how soon a wish to stop is seen.
const NAP: Duration = Duration::from_millis(5);
/// Keys asked for in one go at the end.
const READ_BACK: usize = 64;

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
    if let Err(error) = work.read_back(load) {
        work.report.unreachable = Some(format!("{error:#}"));
    }
    Ok(work.report())
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
            if connection.receive(now, |violation| keep(report, violation)) {
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

    /// Asks for every key on a new connection and judges the answers.
    fn read_back(&mut self, load: &Load) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(load.server), load.patience)?;
        stream.set_read_timeout(Some(load.patience))?;
        stream.set_nodelay(true)?;
        let mut parser = Parser::default();
        let mut found = Vec::new();
        for ledger in self.ledgers() {
            for keys in ledger.keys().chunks(READ_BACK) {
                let mut requests = Vec::new();
                keys.iter().for_each(|(_, _, key)| request(&[b"GET", key.as_bytes()], &mut requests));
                stream.write_all(&requests)?;
                for (kind, index, _) in keys {
                    let reply = next_reply(&mut stream, &mut parser)?;
                    found.extend(ledger.judge(*kind, *index, &reply).err());
                }
            }
        }
        for violation in found {
            self.report.lost += violation.lost;
            keep(&mut self.report, violation);
        }
        Ok(())
    }

    fn report(self) -> Report {
        let connections_lost = self.connections.iter().map(|connection| connection.lost).sum();
        Report { acked: self.acked(), connections_lost, ..self.report }
    }
}

fn keep(report: &mut Report, violation: Violation) {
    report.violation_count += 1;
    if report.violations.len() < KEPT {
        report.violations.push(violation);
    }
}

fn next_reply(stream: &mut TcpStream, parser: &mut Parser) -> anyhow::Result<Reply> {
    let mut buffer = [0; 16 << 10];
    loop {
        if let Some(reply) = parser.take()? {
            return Ok(reply);
        }
        match stream.read(&mut buffer)? {
            0 => anyhow::bail!("the server closed the connection while it was read back"),
            len => parser.push(&buffer[..len]),
        }
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
