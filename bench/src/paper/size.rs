//! How much work each row is.

use crate::report::Row;

/// Rounds, seconds and pages of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Rounds of the JVM's transactions, the first one not counted.
    pub(crate) jvm: u32,
    /// Compilations of the tree.
    pub(crate) compile: u32,
    /// Transactions of each client of pgbench.
    pub(crate) transactions: u32,
    /// Seconds of iperf3 in each direction.
    pub(crate) seconds: u32,
    /// Seconds before these that do not count.
    pub(crate) omit: u32,
    /// Pages, and as many Redis writes times four.
    pub(crate) pages: u32,
    /// Seconds for which the guest's log is watched while it idles.
    pub(crate) idle: u32,
}

impl Size {
    /// Work for this machine: the counted processors of software emulation are some ten times slower, and each of their seconds
    /// takes ten.
    pub(crate) const fn new(emulated: bool, quick: bool) -> Self {
        match (emulated, quick) {
            (true, true) => {
                Self { jvm: 10, compile: 1, transactions: 10, seconds: 1, omit: 0, pages: 80, idle: 1 }
            }
            (true, false) => {
                Self { jvm: 60, compile: 3, transactions: 100, seconds: 5, omit: 1, pages: 400, idle: 5 }
            }
            (false, true) => {
                Self { jvm: 60, compile: 12, transactions: 2_000, seconds: 4, omit: 1, pages: 2_000, idle: 3 }
            }
            (false, false) => Self {
                jvm: 400,
                compile: 60,
                transactions: 20_000,
                seconds: 20,
                omit: 1,
                pages: 20_000,
                idle: 10,
            },
        }
    }

    /// What the guest is to do by itself, for its command line: `jvm:5,compile:1`, or nothing.
    pub(crate) fn batch(&self, rows: &[Row]) -> Option<String> {
        let one = |row: &Row| match row {
            Row::Jvm => Some(format!("jvm:{}", self.jvm)),
            Row::Compile => Some(format!("compile:{}", self.compile)),
            _ => None,
        };
        let all: Vec<_> = rows.iter().filter_map(one).collect();
        (!all.is_empty()).then(|| format!("tandem.do={}", all.join(",")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_rows_go_to_the_guest_by_its_command_line() {
        let size = Size::new(true, true);
        assert_eq!(size.batch(&Row::ALL).as_deref(), Some("tandem.do=jvm:10,compile:1"));
        assert_eq!(size.batch(&[Row::Shop]), None);
        for row in Row::ALL {
            assert_eq!(size.batch(&[row]).is_some(), row.is_batch(), "{}", row.name());
        }
    }
}
