//! What can happen to a pair.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::random::Random;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL of the primary.
    KillPrimary,
    /// SIGKILL of the backup.
    KillBackup,
    /// SIGSTOP of the primary, SIGCONT later: after a take-over it must not send one byte.
    FreezePrimary,
    /// SIGSTOP of the backup, SIGCONT later.
    FreezeBackup,
    /// The cable between the hosts is cut, and joined again later. Both sides still see the clients.
    CutLog,
    /// The primary is killed while nobody can reach the arbiter: nobody may live until it is back.
    ArbiterAway,
    /// The backup gets little time.
    SlowBackup,
    /// Both are killed: nobody is left.
    KillBoth,
    /// A deliberate switch.
    Failover,
    /// One host's RDMA device is taken away, while packets still cross the cable.
    RemoveDevice,
}

impl Kind {
    /// What can happen to any pair.
    pub const ALL: [Self; 9] = [
        Self::KillPrimary,
        Self::KillBackup,
        Self::FreezePrimary,
        Self::FreezeBackup,
        Self::CutLog,
        Self::ArbiterAway,
        Self::SlowBackup,
        Self::KillBoth,
        Self::Failover,
    ];

    /// What can happen to a pair whose log goes over RDMA.
    pub const RDMA: [Self; 10] = {
        let mut kinds = [Self::RemoveDevice; 10];
        let mut n = 0;
        while n < Self::ALL.len() {
            kinds[n] = Self::ALL[n];
            n += 1;
        }
        kinds
    };

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillPrimary => "kill-primary",
            Self::KillBackup => "kill-backup",
            Self::FreezePrimary => "freeze-primary",
            Self::FreezeBackup => "freeze-backup",
            Self::CutLog => "cut-log",
            Self::ArbiterAway => "arbiter-away",
            Self::SlowBackup => "slow-backup",
            Self::KillBoth => "kill-both",
            Self::Failover => "failover",
            Self::RemoveDevice => "remove-device",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::RDMA.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Self::RDMA.map(Self::name).join(", ");
            format!("no such fault; there are {names}")
        })
    }
}

/// One fault, with its times, before they are stretched for a slow machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// From the first replies to the fault.
    pub after: Duration,
    /// How long it lasts, where it ends.
    pub lasts: Duration,
    /// Details: the slow backup's time frozen and time thawed, from one kill to the next.
    pub beat: [Duration; 2],
}

impl Fault {
    /// Draws one: a kind that is allowed, and its times.
    #[must_use]
    pub fn draw(random: &mut Random, allowed: &[Kind]) -> Self {
        let kind = *random.one_of(allowed).unwrap_or(&Kind::KillPrimary);
        let lasts = match kind {
            // From less than anybody notices to long after the take-over; mostly short.
            Kind::FreezePrimary | Kind::FreezeBackup => {
                let share = random.within(0..=1000).pow(3) / 1_000_000;
                Duration::from_micros(30_000 + share * 1_970)
            }
            Kind::CutLog => random.micros(20_000..=600_000),
            Kind::ArbiterAway => random.micros(50_000..=500_000),
            _ => random.micros(300_000..=600_000),
        };
        let beat = [random.micros(1_000..=30_000), random.micros(1_000..=30_000)];
        Self { kind, after: random.micros(20_000..=300_000), lasts, beat }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_and_times_stay_in_bounds() {
        for kind in Kind::RDMA {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("kill".parse::<Kind>().unwrap_err().contains("kill-primary, kill-backup"));
        let mut random = Random::new(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let fault = Fault::draw(&mut random, &Kind::RDMA);
            seen.insert(fault.kind);
            assert!(fault.lasts <= Duration::from_secs(2) && fault.lasts >= Duration::from_millis(20));
        }
        assert_eq!(seen.len(), Kind::RDMA.len());
        assert_eq!(
            Fault::draw(&mut Random::new(5), &Kind::ALL),
            Fault::draw(&mut Random::new(5), &Kind::ALL)
        );
    }
}
