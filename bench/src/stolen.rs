//! Time that a virtual machine wanted a core and did not have it: its host had given it to somebody else.
//!
//! Nothing that runs here can do anything in it, a bare ping-pong no more than a pair. Where it is a hundredth of the time, one output
//! in a hundred is late whatever Tandem does, and a p99 is the host's.

use anyhow::{Context, Result};

use crate::cpu::ticks;

/// The kernel's account of the time of all cores, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    stolen: u64,
    all: u64,
}

impl Account {
    /// Up to now.
    ///
    /// # Errors
    /// No such file, or no such line.
    pub(crate) fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::read(&text).context("/proc/stat says nothing of all cores")
    }

    fn read(stat: &str) -> Option<Self> {
        let ticks = ticks(stat, "cpu")?;
        let [.., stolen] = ticks;
        Some(Self { stolen, all: ticks.iter().sum() })
    }

    /// The share of the time since `before` that was stolen, 0 to 1.
    pub(crate) fn stolen_since(&self, before: &Self) -> f64 {
        let (stolen, all) = (self.stolen.saturating_sub(before.stolen), self.all.saturating_sub(before.all));
        stolen as f64 / all.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eighth_of_the_first_line_is_stolen() {
        let at = |idle, stolen| {
            let text =
                format!("cpu  10 20 30 {idle} 5 0 3 {stolen} 7 0\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 99\n");
            Account::read(&text).unwrap()
        };
        assert!((at(1090, 10).stolen_since(&at(1000, 0)) - 0.1).abs() < 1e-9);
        assert!(at(1000, 0).stolen_since(&at(1000, 0)).abs() < 1e-9);
        assert_eq!(Account::read("cpu  1 2 3 4 5 6 7\n"), None);
        assert_eq!(Account::read("intr 99\n"), None);
    }

    #[test]
    fn this_kernel_has_an_account() {
        assert!(Account::now().unwrap().all > 0);
    }
}
