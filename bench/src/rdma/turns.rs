//! What was measured of each way, turn by turn, and ratios of it.

use anyhow::Result;
use hdrhistogram::Histogram;
use std::time::Duration;

use super::ways::{Ack, Waits, Way};
use crate::cpu;

/// All measurements of one way.
#[derive(Debug)]
pub(super) struct Taken {
    /// `None`: bare writes.
    pub(super) way: Option<Way>,
    pub(super) histogram: Histogram<u64>,
    pub(super) cpu: Duration,
    /// Of each turn, in nanoseconds: [`MEDIAN`], [`TAIL`], [`LOW`].
    turns: Vec<[f64; 3]>,
}

/// Which figure of a turn: the median.
pub(super) const MEDIAN: usize = 0;
/// The 99th of 100.
pub(super) const TAIL: usize = 1;
/// The fifth of 100: on a machine that does other things too, of trips during which both CPUs ran.
pub(super) const LOW: usize = 2;

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
        let before = cpu::used(libc::RUSAGE_SELF);
        for _ in 0..trips {
            this.record(trip()?.as_nanos() as u64)?;
        }
        self.cpu += cpu::used(libc::RUSAGE_SELF).saturating_sub(before);
        self.turns.push([0.5, 0.99, 0.05].map(|quantile| this.value_at_quantile(quantile) as f64));
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
    pub(super) fn over_tcp(&self, which: usize, way: Way) -> f64 {
        let tcp = Way { ack: Ack::Tcp, ..way };
        self.of(which, |one| one == Some(way), |one| one == Some(tcp))
    }

    /// One way (`None`: bare writes) against the fastest way of TCP, however that waits.
    pub(super) fn over_fastest_tcp(&self, way: Option<Way>) -> f64 {
        self.of(MEDIAN, |one| one == way, |one| one.is_some_and(|one| one.ack == Ack::Tcp))
    }

    /// Of the ways with these acks the best against TCP that waits in the same way.
    pub(super) fn best(&self, which: usize, acks: &[Ack]) -> (Way, f64) {
        let mut best = (Way { ack: acks[0], completion: Waits::Events }, f64::INFINITY);
        for &ack in acks {
            for completion in Waits::ALL {
                let way = Way { ack, completion };
                let ratio = self.over_tcp(which, way);
                if ratio < best.1 {
                    best = (way, ratio);
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(way: Option<Way>, turns: &[f64]) -> Taken {
        Taken { turns: turns.iter().map(|&turn| [turn; 3]).collect(), ..Taken::new(way).unwrap() }
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
                    Waits::Busy => (90.0, [1.0, 2.0, 1.1]),
                };
                let time = tcp * factor[way.ack as usize];
                taken(Some(way), &[time, time * 2.0, time * 1.5])
            })
            .collect();
        all.push(taken(None, &[180.0, 360.0, 270.0]));
        let ratios = Ratios(&all);
        assert_eq!(ratios.best(MEDIAN, &[Ack::Read, Ack::Placed]), (way(Ack::Placed, Waits::Events), 0.6));
        assert_eq!(ratios.best(MEDIAN, &[Ack::Read]), (way(Ack::Read, Waits::Events), 1.2));
        assert_eq!(ratios.over_fastest_tcp(Some(way(Ack::Placed, Waits::Events))), 2.0);
        assert_eq!(ratios.over_fastest_tcp(None), 2.0);
    }
}
