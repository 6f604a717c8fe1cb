//! The guest's own clock, asked for by `TIME` again and again: whoever serves, it must never go back.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::lab::Namespace;

/// How soon a wish to stop is seen.
const NAP: Duration = Duration::from_millis(50);

/// What was seen of a guest's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockReport {
    /// Readings.
    pub readings: u64,
    /// The furthest that a reading lay behind one that was there before it was asked for.
    pub back: Duration,
    /// How much less time passed in the guest than here, from the first reading to the last. A backup goes on
    /// from the last reading in the log: what a take-over takes, the guest does not live through.
    pub behind: Duration,
    /// The furthest that the guest's clock got ahead of ours since the first question: nothing, unless it jumped.
    pub ahead: Duration,
}

/// A thread that asks.
#[derive(Debug)]
pub struct ClockWatch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Readings>>,
}

/// The readings so far: when each came (and the first one was asked for), and what it said since 1970.
#[derive(Clone, Copy, Debug, Default)]
struct Readings {
    asked: Option<Instant>,
    first: Option<(Instant, Duration)>,
    last: Option<(Instant, Duration)>,
    count: u64,
    back: Duration,
    ahead: Duration,
}

impl ClockWatch {
    /// Starts to ask, each `pace`, inside a namespace.
    ///
    /// # Errors
    /// When no thread can be started there.
    pub fn start(namespace: &Namespace, server: SocketAddrV4, pace: Duration) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let thread = namespace.enter(|| {
            std::thread::Builder::new().name("clock".to_owned()).spawn(move || watch(server, pace, &theirs))
        })?;
        Ok(Self { stop, thread: Some(thread.context("cannot start a thread for the guest's clock")?) })
    }

    /// Stops, and tells what was seen.
    #[must_use]
    pub fn finish(mut self) -> ClockReport {
        self.stop.store(true, Ordering::Relaxed);
        let readings = self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        readings.report()
    }
}

impl Drop for ClockWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Readings {
    fn add(&mut self, asked: Instant, came: Instant, said: Duration) {
        let newest = self.last.map_or(said, |(_, before)| before.max(said));
        self.back = self.back.max(newest.saturating_sub(said));
        let first = *self.first.get_or_insert((came, said));
        let asked = *self.asked.get_or_insert(asked);
        let (here, there) = (came.saturating_duration_since(asked), newest.saturating_sub(first.1));
        self.ahead = self.ahead.max(there.saturating_sub(here));
        self.last = Some((came, newest));
        self.count += 1;
    }

    fn report(&self) -> ClockReport {
        let behind = self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| {
            last.0.saturating_duration_since(first.0).saturating_sub(last.1.saturating_sub(first.1))
        });
        ClockReport { readings: self.count, back: self.back, behind, ahead: self.ahead }
    }
}

/// Asks on one connection after the other: the next question only after the last one's answer.
fn watch(server: SocketAddrV4, pace: Duration, stop: &AtomicBool) -> Readings {
    let mut readings = Readings::default();
    while !stop.load(Ordering::Relaxed) {
        if ask(server, pace, stop, &mut readings).is_err() {
            std::thread::sleep(NAP);
        }
    }
    readings
}

fn ask(server: SocketAddrV4, pace: Duration, stop: &AtomicBool, readings: &mut Readings) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(server), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(NAP))?;
    stream.set_nodelay(true)?;
    let mut reply = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        stream.write_all(b"*1\r\n$4\r\nTIME\r\n")?;
        let said = loop {
            if let Some((said, len)) = time(&reply) {
                reply.drain(..len);
                break said;
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut buffer = [0; 256];
            match stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => reply.extend_from_slice(&buffer[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
            if reply.len() > 4096 {
                return Err(ErrorKind::InvalidData.into());
            }
        };
        readings.add(asked, Instant::now(), said);
        std::thread::sleep(pace);
    }
    Ok(())
}

/// The answer to `TIME`, an array of seconds and microseconds, and its length; `None` while it is not whole.
fn time(reply: &[u8]) -> Option<(Duration, usize)> {
    let text = std::str::from_utf8(reply).ok()?;
    let mut lines = text.split_inclusive("\r\n");
    let mut taken = 0;
    let mut next = || {
        let line = lines.next()?;
        taken += line.len();
        line.strip_suffix("\r\n")
    };
    if next()? != "*2" {
        return None;
    }
    next()?;
    let seconds = next()?.parse().ok()?;
    next()?;
    let micros = next()?.parse().ok()?;
    Some((Duration::from_secs(seconds) + Duration::from_micros(micros), taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_when_it_is_whole() {
        let whole = b"*2\r\n$10\r\n1700000000\r\n$6\r\n250000\r\n";
        assert_eq!(time(whole), Some((Duration::from_millis(1_700_000_000_250), whole.len())));
        for len in 0..whole.len() {
            assert_eq!(time(&whole[..len]), None, "{len}");
        }
        assert_eq!(time(b"-ERR unknown command\r\n"), None);
    }

    #[test]
    fn a_clock_that_goes_back_and_one_that_stands_are_told() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let seen = |pairs: &[(u64, u64)]| {
            let mut readings = Readings::default();
            for &(here, there) in pairs {
                readings.add(start + ms(here), start + ms(here + 10), ms(there));
            }
            readings.report()
        };
        let report = seen(&[(0, 5000), (100, 5100), (900, 5150), (1000, 5250)]);
        assert_eq!(report, ClockReport { readings: 4, back: ms(0), behind: ms(750), ahead: ms(0) });
        let report = seen(&[(0, 5000), (100, 5100), (200, 5040), (300, 5090), (400, 5200)]);
        assert_eq!(report, ClockReport { readings: 5, back: ms(60), behind: ms(200), ahead: ms(0) });
        let report = seen(&[(0, 5000), (100, 5130), (200, 9200), (300, 9300)]);
        assert_eq!(report, ClockReport { readings: 4, back: ms(0), behind: ms(0), ahead: ms(3990) });
        assert_eq!(seen(&[]), ClockReport::default());
    }
}
