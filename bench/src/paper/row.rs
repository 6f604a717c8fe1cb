//! The rows of the paper's tables, and what stands in for each of its workloads.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// One row of ours: a workload with software that anybody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Row {
    /// Transactions in a JVM's memory.
    Jvm,
    /// A C tree is compiled.
    Compile,
    /// TPC-B on PostgreSQL.
    Database,
    /// Pages from disk and writes to Redis.
    Shop,
    /// The guest receives.
    Receive,
    /// The guest transmits.
    Transmit,
}

/// The paper's figures for a row (Scales, Nelson, Venkitachalam 2010, tables 1 and 2).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Paper {
    /// Its name for the workload.
    pub(crate) workload: &'static str,
    /// 1 or 2.
    pub(crate) table: u8,
    /// Performance with fault tolerance by without.
    pub(crate) ratio: f64,
    /// Of the log, in Mbit/s.
    pub(crate) log_mbit_s: f64,
}

impl Row {
    /// All, in the order of the paper.
    pub(crate) const ALL: [Self; 6] =
        [Self::Jvm, Self::Compile, Self::Database, Self::Shop, Self::Receive, Self::Transmit];

    /// Its name, in JSON and on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Jvm => "jvm",
            Self::Compile => "compile",
            Self::Database => "database",
            Self::Shop => "shop",
            Self::Receive => "receive",
            Self::Transmit => "transmit",
        }
    }

    /// What runs, and why it is like what the paper ran.
    pub(crate) const fn stand_in(self) -> &'static str {
        match self {
            Self::Jvm => "OpenJDK 17 with the H2 database in its memory: warehouses, orders, stock",
            Self::Compile => "Lua 5.4 compiled, archived and linked by tcc and make, on ext4",
            Self::Database => "PostgreSQL 15, pgbench TPC-B, 4 clients over the network",
            Self::Shop => {
                "nginx with pages from disk (direct I/O), and Redis with an append-only file, both at once"
            }
            Self::Receive => "iperf3, TCP, client to guest",
            Self::Transmit => "iperf3, TCP, guest to client",
        }
    }

    /// What is counted.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Jvm | Self::Compile => "rounds/s",
            Self::Database => "transactions/s",
            Self::Shop => "requests/s",
            Self::Receive | Self::Transmit => "Mbit/s",
        }
    }

    /// Whether the guest does it by itself, before its services start.
    pub(crate) const fn is_batch(self) -> bool {
        matches!(self, Self::Jvm | Self::Compile)
    }

    /// What the paper has; of table 2 the 10 Gbit/s channel.
    pub(crate) const fn paper(self) -> Paper {
        let (workload, table, ratio, log_mbit_s) = match self {
            Self::Jvm => ("SPECjbb2005", 1, 0.98, 1.5),
            Self::Compile => ("kernel compile", 1, 0.95, 3.0),
            Self::Database => ("Oracle Swingbench", 1, 0.99, 12.0),
            Self::Shop => ("MS-SQL DVD Store", 1, 0.94, 18.0),
            Self::Receive => ("netperf receive, 10 Gb channel", 2, 860.0 / 940.0, 990.0),
            Self::Transmit => ("netperf transmit, 10 Gb channel", 2, 935.0 / 940.0, 60.0),
        };
        Paper { workload, table, ratio, log_mbit_s }
    }
}

/// How much work each row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Rounds of the JVM's transactions, the first one not counted.
    pub(crate) jvm: u32,
    /// Compilations of the tree.
    pub(crate) compile: u32,
    /// Seconds of pgbench, and of iperf3 in each direction.
    pub(crate) seconds: u32,
    /// Pages, and as many Redis writes times four.
    pub(crate) pages: u32,
    /// Seconds for which the guest's log is watched while it idles.
    pub(crate) idle: u32,
}

impl Size {
    /// Work for this machine: in software emulation everything is some thirty times slower.
    pub(crate) const fn new(emulated: bool, quick: bool) -> Self {
        match (emulated, quick) {
            (true, true) => Self { jvm: 4, compile: 2, seconds: 5, pages: 30, idle: 4 },
            (true, false) => Self { jvm: 12, compile: 4, seconds: 15, pages: 120, idle: 10 },
            (false, true) => Self { jvm: 60, compile: 12, seconds: 4, pages: 2_000, idle: 3 },
            (false, false) => Self { jvm: 400, compile: 60, seconds: 20, pages: 20_000, idle: 10 },
        }
    }

    /// What the guest is to do by itself, for its command line: `jvm:4,compile:2`, or nothing.
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
    fn the_papers_figures_are_those_of_its_tables() {
        let told: Vec<_> = Row::ALL
            .map(|row| {
                let paper = row.paper();
                format!("{} {:.2} {}", paper.table, paper.ratio, paper.log_mbit_s)
            })
            .into();
        assert_eq!(told, ["1 0.98 1.5", "1 0.95 3", "1 0.99 12", "1 0.94 18", "2 0.91 990", "2 0.99 60"]);
    }

    #[test]
    fn batch_rows_go_to_the_guest_by_its_command_line() {
        let size = Size::new(true, true);
        assert_eq!(size.batch(&Row::ALL).as_deref(), Some("tandem.do=jvm:4,compile:2"));
        assert_eq!(size.batch(&[Row::Shop]), None);
        for row in Row::ALL {
            assert_eq!(size.batch(&[row]).is_some(), row.is_batch(), "{}", row.name());
        }
    }
}
