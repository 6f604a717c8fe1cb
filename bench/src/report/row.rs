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
            Self::Jvm => "OpenJDK 17: orders, payments and deliveries of warehouses in its memory",
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
}
