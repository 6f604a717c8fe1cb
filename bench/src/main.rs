//! `tandem-bench`: the figures that Tandem is measured by, each as a ratio within one run where
//! possible, each ending with one line of JSON.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use clap::{Parser, Subcommand};

mod channel;
mod cpu;
mod kmod;
mod linux;
mod log;
mod memory;
mod pair;
mod paper;
mod peers;
mod pin;
mod pingpong;
#[cfg(feature = "rdma")]
mod rdma;
mod report;
mod stolen;

#[derive(Debug, Parser)]
#[command(version, about = "Measures Tandem; every subcommand ends with one line of JSON")]
struct Cli {
    #[command(subcommand)]
    figure: Figure,
}

#[derive(Debug, Subcommand)]
enum Figure {
    /// The log channel: ack round trip against a bare io_uring TCP ping-pong, and the cost of an append.
    Channel(channel::Args),
    /// The protected pair: redis-benchmark against the same VM alone, and against a bare ping-pong.
    Pair(pair::Args),
    /// A Linux guest: recorded against unprotected, replayed against recorded, idle in a pair.
    Linux(linux::Args),
    /// An instruction captured by the kernel module against one taken to user space, and against CPUID.
    Kmod(kmod::Args),
    /// The rate of a recorded log, and what it is made of.
    Log(log::Args),
    /// The paper's tables with a Linux guest: protected against unprotected.
    Paper(paper::Args),
    /// The same guest and work on QEMU.
    Peers(paper::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().figure {
        Figure::Channel(args) => channel::run(&args),
        Figure::Pair(args) => pair::run(&args),
        Figure::Linux(args) => linux::run(&args),
        Figure::Kmod(args) => kmod::run(&args),
        Figure::Log(args) => log::run(&args),
        Figure::Paper(args) => paper::run(&args),
        Figure::Peers(args) => peers::run(&args),
    }
}
