//! What was measured of each way, turn by turn, and ratios of it.

use anyhow::Result;
use hdrhistogram::Histogram;
use std::time::Duration;

use super::ways::{Ack, Waits, Way};

/// All measurements of one way.
#[derive(Debug)]
pub(super) struct Taken {
    /// `None`: bare writes.
    pub(super) way: Option<Way>,
    pub(super) histogram: Histogram<u64>,
    pub(super) cpu: Duration,
    /// Of each turn, in nanoseconds: the median, and the 99th of 100.
    turns: Vec<[f64; 2]>,
}

/// Which figure of a turn.
pub(super) const MEDIAN: usize = 0;
/// Which figure of a turn.
pub(super) const TAIL: usize = 1;

impl Taken {
    /// Nothing yet.
    pub(super) fn new(way: Option<Way>) -> Result<Self> {
        Ok(Self { way, histogram: Histogram::new(3)?, cpu: Duration::ZERO, turns: Vec::new() })
    }

    /// One turn of so many round trips; a tenth more before that do not count.
    pub(super) fn turn(&mut self, trips: u32, mut trip: impl FnMut() -> Result<Duration>) -> Result<()> {
        for _ in 0..trips / 10 {
            trip()?;
        }
        let mut this = Histogram::<u64>::new(3)?;
        let before = cpu_time();
        for _ in 0..trips {
            this.record(trip()?.as_nanos() as u64)?;
        }
        self.cpu += cpu_time().saturating_sub(before);
        self.turns.push([0.5, 0.99].map(|quantile| this.value_at_quantile(quantile) as f64));
        self.histogram.add(&this)?;
        Ok(())
    }
}

/// A comparison of some ways with others.
pub(super) struct Ratios<'a>(pub(super) &'a [Taken]);

impl Ratios<'_> {
    /// The middle of the turns' ratios: the fastest of some ways by the fastest of others.
    pub(super) fn of(
        &self,
        which: usize,
        ways: impl Fn(Option<Way>) -> bool,
        others: impl Fn(Option<Way>) -> bool,
    ) -> f64 {
        let fastest = |wanted: &dyn Fn(Option<Way>) -> bool, turn: usize| {
            let all = self.0.iter().filter(|taken| wanted(taken.way));
            all.map(|taken| taken.turns[turn][which]).fold(f64::INFINITY, f64::min)
        };
        let turns = 0..self.0.first().map_or(0, |taken| taken.turns.len());
        let mut ratios: Vec<f64> = turns.map(|turn| fastest(&ways, turn) / fastest(&others, turn)).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).map_or(f64::NAN, |ratio| (ratio * 1000.0).round() / 1000.0)
    }

    /// One way against TCP that waits in the same way.
    pub(super) fn over_tcp(&self, way: Way) -> f64 {
        let tcp = Way { ack: Ack::Tcp, ..way };
        self.of(MEDIAN, |one| one == Some(way), |one| one == Some(tcp))
    }

    /// One way (`None`: bare writes) against the fastest way of TCP, however that waits.
    pub(super) fn over_fastest_tcp(&self, way: Option<Way>) -> f64 {
        self.of(MEDIAN, |one| one == way, |one| one.is_some_and(|one| one.ack == Ack::Tcp))
    }

    /// Of the ways with these acks the best against TCP that waits in the same way.
    pub(super) fn best(&self, acks: &[Ack]) -> (Way, f64) {
        let mut best = (Way { ack: acks[0], completion: Waits::Events }, f64::INFINITY);
        for &ack in acks {
            for completion in Waits::ALL {
                let way = Way { ack, completion };
                let ratio = self.over_tcp(way);
                if ratio < best.1 {
                    best = (way, ratio);
                }
            }
        }
        best
    }
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    // SAFETY: all zeros is a valid rusage, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime]
        .iter()
        .map(|time| Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(way: Option<Way>, turns: &[f64]) -> Taken {
        Taken { turns: turns.iter().map(|&turn| [turn, turn]).collect(), ..Taken::new(way).unwrap() }
    }

    #[test]
    fn a_way_is_compared_with_tcp_that_waits_alike() {
        let way = |ack, completion| Way { ack, completion };
        let mut all: Vec<Taken> = Way::all()
            .into_iter()
            .map(|way| {
                let (tcp, factor) = match way.completion {
                    Waits::Events => (300.0, [1.0, 1.2, 0.6]),
                    Waits::Adaptive => (100.0, [1.0, 3.0, 2.0]),
                    Waits::Busy => (90.0, [1.0, 2.0, 0.9]),
                };
                let time = tcp * factor[way.ack as usize];
                taken(Some(way), &[time, time * 2.0, time * 1.5])
            })
            .collect();
        all.push(taken(None, &[180.0, 360.0, 270.0]));
        let ratios = Ratios(&all);
        assert_eq!(ratios.best(&[Ack::Read, Ack::Placed]), (way(Ack::Placed, Waits::Events), 0.6));
        assert_eq!(ratios.best(&[Ack::Read]), (way(Ack::Read, Waits::Events), 1.2));
        assert_eq!(ratios.over_fastest_tcp(Some(way(Ack::Placed, Waits::Events))), 2.0);
        assert_eq!(ratios.over_fastest_tcp(None), 2.0);
    }
}
