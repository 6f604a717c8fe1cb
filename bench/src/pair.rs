//! A protected VM against the same VM alone: redis-benchmark's throughput and latency.
//!
//! Clients and primary share a core and the backup has another, as two hosts would; the unprotected VM
//! runs on the first. Turns alternate, alone and protected, and what is compared are medians. Before
//! each protected turn a bare ping-pong crosses the same cable from core to core: the round trip that
//! the Output Rule costs a reply at least.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tandem_logchan::ack::ACK_FRAME_LEN;
use tandem_tests::bed::{Bed, CORES, Program};
use tandem_tests::config::{Guest, Pace, Spec};
use tandem_tests::lab::{self, BACKUP, Host};
use tandem_tests::median::median;
use tandem_tests::redis_benchmark::{self, Figure, Figures, Load};
use tandem_vmm::host::control::OutputStage;
use tandem_vmm::host::shutdown::Shutdown;

use crate::memory::{MEMORY, memory_beside_the_guest};
use crate::pin;
use crate::pingpong::PingPong;

/// Bytes of a frame that carries one request of redis-benchmark.
const FRAME: usize = 256;
/// Round trips per turn.
const TRIPS: usize = 3000;

/// Loads: name in the report, connections, pipeline, and which part of the requests.
const LOADS: [(&str, u32, u32, u64); 3] = [("p1", 50, 1, 1), ("p16", 50, 16, 0), ("single", 1, 1, 20)];

/// What to measure, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Turns alone and turns protected.
    #[arg(long, default_value_t = 5)]
    turns: u32,
    /// Requests per test at pipeline 1; ten times as many at pipeline 16, a twentieth from a single client.
    #[arg(long, default_value_t = 60_000)]
    requests: u64,
}

/// One load, by turns.
#[derive(Debug, Default)]
struct Turns {
    alone: Vec<Figures>,
    pair: Vec<Figures>,
}

/// One load in the report.
#[derive(Debug, Serialize)]
struct Compared {
    load: &'static str,
    alone_set_per_s: f64,
    alone_get_per_s: f64,
    set_ratio: f64,
    get_ratio: f64,
    /// Of SET and GET, whichever is more.
    added_p50_us: f64,
    added_over_pingpong: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    pingpong_us: f64,
    loads: Vec<Compared>,
    output_delay_us_p50: f64,
    output_delay_us_p99: f64,
    /// The way of an output stage by stage, in the last turn.
    output_stages: Vec<OutputStage>,
    forced_stops: u64,
    /// The most that a side takes beside the guest's RAM, after the load.
    memory_mib: f64,
    /// The figures that were not reached.
    missed: Vec<&'static str>,
}

/// Measures, prints a table and one line of JSON.
///
/// # Errors
/// No lab can be built, redis-benchmark is missing, or a VM does not come up.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.turns > 0 && args.requests >= 1000, "nothing to measure");
    if let Some(obstacle) = lab::obstacle() {
        bail!("no lab can be built here: {obstacle}");
    }
    ensure!(redis_benchmark::is_installed(), "redis-benchmark is missing: install redis-tools");
    let spec = Spec { name: "bench".to_owned(), guest: Guest::Embedded, pace: Pace::NATIVE };
    let mut bed = Bed::new("bench", Program::tandem()?, spec, Shutdown::on_signals()?)?;
    let mut turns = LOADS.map(|_| Turns::default());
    let (mut pings, mut delays) = (Vec::new(), Vec::new());
    let mut output_stages = Vec::new();
    let (mut forced_stops, mut memory) = (0, 0.0f64);
    for turn in 1..=args.turns {
        eprintln!("turn {turn} of {}", args.turns);
        let side = bed.alone().context("the unprotected VM")?;
        for ((_, clients, pipeline, part), turns) in LOADS.into_iter().zip(&mut turns) {
            turns.alone.push(measure(&bed, args, clients, pipeline, part)?);
        }
        drop(side);
        pings.push(ping_pong(&bed)?);
        let pair = bed.pair().context("the protected pair")?;
        for ((_, clients, pipeline, part), turns) in LOADS.into_iter().zip(&mut turns) {
            turns.pair.push(measure(&bed, args, clients, pipeline, part)?);
        }
        let status = pair.primary.status()?;
        let delay = status.output_delay.context("no output was held")?;
        delays.push((delay.p50_us, delay.p99_us));
        output_stages = delay.stages;
        forced_stops += status.forced_stops;
        for side in [&pair.primary, &pair.backup] {
            memory = memory.max(memory_beside_the_guest(side.process.pid())?);
        }
    }
    let pingpong_us = median(pings);
    let loads: Vec<_> =
        LOADS.iter().zip(&turns).map(|((name, ..), turns)| compare(name, turns, pingpong_us)).collect();
    let busy = || loads.iter().filter(|load| load.load != "single");
    let fast = busy().all(|load| load.set_ratio >= 0.90 && load.get_ratio >= 0.90);
    let prompt = loads.iter().all(|load| load.added_over_pingpong <= 1.3);
    let small = memory <= MEMORY;
    let report = Report {
        bench: "pair",
        pingpong_us,
        output_delay_us_p50: median(delays.iter().map(|delay| delay.0).collect()),
        output_delay_us_p99: median(delays.iter().map(|delay| delay.1).collect()),
        output_stages,
        forced_stops,
        memory_mib: memory,
        missed: [("throughput", fast), ("latency", prompt), ("memory", small)]
            .into_iter()
            .filter_map(|(figure, holds)| (!holds).then_some(figure))
            .collect(),
        loads,
    };
    tell(&report)
}

fn tell(report: &Report) -> Result<()> {
    println!("bare ping-pong over the log's cable: p50 {:.1} us", report.pingpong_us);
    println!("               alone SET/s  alone GET/s   ratio SET  ratio GET   added p50   / ping-pong");
    for load in &report.loads {
        println!(
            "{:<12} {:>13.0} {:>12.0} {:>11.3} {:>10.3} {:>8.0} us {:>13.2}",
            load.load,
            load.alone_set_per_s,
            load.alone_get_per_s,
            load.set_ratio,
            load.get_ratio,
            load.added_p50_us,
            load.added_over_pingpong
        );
    }
    println!("targets                                        0.90       0.90                       1.3");
    println!(
        "outputs were held for the log {:.0} us (p50), {:.0} us (p99); {} forced stops",
        report.output_delay_us_p50, report.output_delay_us_p99, report.forced_stops
    );
    for stage in &report.output_stages {
        println!("   {:<10} {:>5.0} us (p50) {:>5.0} us (p99)", stage.name, stage.p50_us, stage.p99_us);
    }
    println!("memory of a side beside the guest's RAM: {:.1} MiB (target {MEMORY})", report.memory_mib);
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

fn measure(bed: &Bed, args: &Args, clients: u32, pipeline: u32, part: u64) -> Result<Figures> {
    ensure!(!bed.interrupted().requested(), "interrupted");
    let requests = match part {
        0 => args.requests * 10,
        part => args.requests / part,
    };
    let load = Load { requests, clients, pipeline };
    redis_benchmark::measure(bed.lab.client(), bed.server(), load, bed.patience(60.0))
}

fn compare(load: &'static str, turns: &Turns, pingpong_us: f64) -> Compared {
    type Command = fn(&Figures) -> Figure;
    let of = |turns: &[Figures], command: Command, what: fn(&Figure) -> f64| {
        median(turns.iter().map(|figures| what(&command(figures))).collect())
    };
    let ratio = |command| {
        of(&turns.pair, command, |figure| figure.rate) / of(&turns.alone, command, |figure| figure.rate)
    };
    let added = |command| {
        of(&turns.pair, command, |figure| figure.p50_us) - of(&turns.alone, command, |figure| figure.p50_us)
    };
    let (set, get): (Command, Command) = (|figures| figures.set, |figures| figures.get);
    let added_p50_us = added(set).max(added(get));
    Compared {
        load,
        alone_set_per_s: of(&turns.alone, set, |figure| figure.rate),
        alone_get_per_s: of(&turns.alone, get, |figure| figure.rate),
        set_ratio: ratio(set),
        get_ratio: ratio(get),
        added_p50_us,
        added_over_pingpong: added_p50_us / pingpong_us,
    }
}

/// Median round trip in microseconds between the two hosts, from the primary's core to the backup's.
pub(crate) fn ping_pong(bed: &Bed) -> Result<f64> {
    let listener = bed.lab.host(Host::Backup).enter(|| TcpListener::bind((BACKUP, 0)))??;
    let address = listener.local_addr()?;
    let client = bed.lab.host(Host::Primary).enter(|| TcpStream::connect(address))??;
    let (echo, _) = listener.accept()?;
    for stream in [&client, &echo] {
        stream.set_nodelay(true)?;
    }
    let trips = std::thread::spawn(move || {
        pin::to_core(CORES[0])?;
        let mut bare = PingPong::open(client, echo, CORES[1], FRAME, ACK_FRAME_LEN)?;
        (0..TRIPS).map(|_| Ok(micros(bare.trip()?))).collect::<Result<Vec<_>>>()
    });
    Ok(median(trips.join().map_err(|_| anyhow::anyhow!("the ping-pong's thread panicked"))??))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
