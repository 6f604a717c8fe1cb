//! A protected VM against the same VM alone: redis-benchmark's throughput and latency.
//!
//! Clients and primary share a core and the backup has another, as two hosts would; the unprotected VM
//! runs on the first. They take turns of seconds, each alone on the machine: a machine whose speed drifts is about as fast for
//! both halves of a turn, and a pair that idles costs more than an idle VM, so neither may be up while the other is
//! measured. What is told is the median over the turns of each turn's ratio. In each turn a bare ping-pong crosses the log's
//! cable from core to core: the round trip that the Output Rule costs a reply at least.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tandem_logchan::ack::ACK_FRAME_LEN;
use tandem_tests::bed::{Bed, CORES, Program};
use tandem_tests::config::{Guest, Pace, Spec};
use tandem_tests::lab::{self, BACKUP, Host};
use tandem_tests::median::{median, middle_mean, quartiles};
use tandem_tests::redis_benchmark::{self, Figure, Figures, Load};
use tandem_tests::side::Side;
use tandem_vmm::host::control::{OutputDelay, OutputStage};
use tandem_vmm::host::shutdown::Shutdown;

use crate::cpu;
use crate::memory::{MEMORY, memory_beside_the_guest};
use crate::pin;
use crate::pingpong::PingPong;

/// Bytes of a frame that carries one request of redis-benchmark.
pub(crate) const FRAME: usize = 256;
/// Round trips per turn.
const TRIPS: usize = 3000;

/// Before a load is measured, this part of it goes by: a new VM has not touched its memory yet.
const WARM_UP: u64 = 5;

/// Loads: name in the report, connections, pipeline, and which part of the requests.
const LOADS: [(&str, u32, u32, u64); 3] = [("p1", 50, 1, 1), ("p16", 50, 16, 0), ("single", 1, 1, 10)];

/// What to measure, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Turns alone and turns protected.
    #[arg(long, default_value_t = 40)]
    turns: u32,
    /// Requests per test at pipeline 1; ten times as many at pipeline 16, a tenth from a single client.
    #[arg(long, default_value_t = 10_000)]
    requests: u64,
    /// Only this load
    #[arg(long, value_parser = LOADS.map(|load| load.0))]
    only: Option<String>,
}

impl Args {
    /// Of each command, for a load that has this part of them.
    const fn requests(&self, part: u64) -> u64 {
        match part {
            0 => self.requests * 10,
            part => self.requests / part,
        }
    }
}

/// One load, by turns.
#[derive(Debug, Default)]
struct Turns {
    alone: Half,
    pair: Half,
}

/// The turns of one VM, and what it did in all of them.
#[derive(Debug, Default)]
struct Half {
    figures: Vec<Figures>,
    exits: u64,
    /// Log frames sent.
    frames: u64,
    /// That the clients sent.
    packets: u64,
    /// Of the clients and the VM's process.
    cpu: Duration,
}

impl Half {
    /// One more turn, of the VM that `side` runs.
    fn turn(&mut self, bed: &Bed, side: &Side, load: Load) -> Result<()> {
        ensure!(!bed.interrupted().requested(), "interrupted");
        measure(bed, Load { requests: load.requests / WARM_UP, ..load })?;
        let done = || side.status().map(|status| (status.exits.values().sum::<u64>(), status.frames));
        let pid = side.process.pid();
        let (exits, frames) = done()?;
        let cpu = (cpu::of_process(pid)?, cpu::used(libc::RUSAGE_CHILDREN));
        self.figures.push(measure(bed, load)?);
        self.cpu += cpu::of_process(pid)? - cpu.0 + (cpu::used(libc::RUSAGE_CHILDREN) - cpu.1);
        let after = done()?;
        self.exits += after.0 - exits;
        self.frames += after.1 - frames;
        // Of SET, and as many of GET.
        self.packets += 2 * load.requests / u64::from(load.pipeline);
        Ok(())
    }
}

fn measure(bed: &Bed, load: Load) -> Result<Figures> {
    redis_benchmark::measure(bed.lab.client(), bed.server(), load, bed.patience(60.0))
}

/// One load in the report.
#[derive(Debug, Serialize)]
struct Compared {
    load: &'static str,
    alone_set_per_s: f64,
    alone_get_per_s: f64,
    set_ratio: f64,
    get_ratio: f64,
    /// A quarter and three quarters of the way up of the turns' ratios.
    set_quartiles: [f64; 2],
    get_quartiles: [f64; 2],
    /// What the median latency is more by, the mean of the middle half of the turns; of SET and GET, whichever is more.
    added_p50_us: f64,
    added_over_pingpong: f64,
    /// Exits of the primary, by those of the VM alone: more of them where packets come in smaller batches.
    exits_ratio: f64,
    /// Of what the clients sent, packets in a log frame.
    packets_per_frame: f64,
    /// CPU time of clients and primary, by that of clients and the VM alone: what the throughput is where a core is
    /// full.
    cpu_ratio: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    pingpong_us: f64,
    loads: Vec<Compared>,
    output_delay_us_p50: f64,
    output_delay_us_p99: f64,
    /// The way of an output stage by stage.
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
    let all: Vec<_> =
        LOADS.into_iter().filter(|load| args.only.as_ref().is_none_or(|only| only == load.0)).collect();
    let mut turns: Vec<_> = all.iter().map(|_| Turns::default()).collect();
    let (mut pings, mut delays) = (Vec::new(), Vec::new());
    let (mut forced_stops, mut memory) = (0, 0.0f64);
    let load = |&(_, clients, pipeline, part): &(_, u32, u32, u64)| Load {
        requests: args.requests(part),
        clients,
        pipeline,
    };
    for turn in 1..=args.turns {
        eprintln!("turn {turn} of {}", args.turns);
        pings.push(ping_pong(&bed)?.median);
        let alone = bed.alone().context("the unprotected VM")?;
        for (kind, turns) in all.iter().zip(&mut turns) {
            turns.alone.turn(&bed, &alone, load(kind))?;
        }
        drop(alone);
        let pair = bed.pair().context("the protected pair")?;
        for (kind, turns) in all.iter().zip(&mut turns) {
            turns.pair.turn(&bed, &pair.primary, load(kind))?;
        }
        let status = pair.primary.status()?;
        delays.push(status.output_delay.context("no output was held")?);
        forced_stops += status.forced_stops;
        for side in [&pair.primary, &pair.backup] {
            memory = memory.max(memory_beside_the_guest(side.process.pid())?);
        }
    }
    let delay = |what: fn(&OutputDelay) -> f64| median(delays.iter().map(what).collect());
    let stage = |number: usize| OutputStage {
        name: delays[0].stages[number].name.clone(),
        p50_us: median(delays.iter().map(|delay| delay.stages[number].p50_us).collect()),
        p99_us: median(delays.iter().map(|delay| delay.stages[number].p99_us).collect()),
    };
    let pingpong_us = median(pings);
    let loads: Vec<_> =
        all.iter().zip(&turns).map(|((name, ..), turns)| compare(name, turns, pingpong_us)).collect();
    let busy = || loads.iter().filter(|load| load.load != "single");
    let fast = busy().all(|load| load.set_ratio >= 0.90 && load.get_ratio >= 0.90);
    let prompt = loads.iter().all(|load| load.added_over_pingpong <= 1.3);
    let small = memory <= MEMORY;
    let report = Report {
        bench: "pair",
        pingpong_us,
        output_delay_us_p50: delay(|delay| delay.p50_us),
        output_delay_us_p99: delay(|delay| delay.p99_us),
        output_stages: (0..delays[0].stages.len()).map(stage).collect(),
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
    println!(
        "               alone SET/s  alone GET/s   ratio SET (quartiles)     ratio GET (quartiles)   added p50   / ping-pong   exits  packets/frame  CPU"
    );
    for load in &report.loads {
        println!(
            "{:<12} {:>13.0} {:>12.0} {:>11.3} ({:.2} {:.2}) {:>13.3} ({:.2} {:.2}) {:>8.0} us {:>13.2} {:>7.2} {:>14.1} {:>4.3}",
            load.load,
            load.alone_set_per_s,
            load.alone_get_per_s,
            load.set_ratio,
            load.set_quartiles[0],
            load.set_quartiles[1],
            load.get_ratio,
            load.get_quartiles[0],
            load.get_quartiles[1],
            load.added_p50_us,
            load.added_over_pingpong,
            load.exits_ratio,
            load.packets_per_frame,
            load.cpu_ratio
        );
    }
    println!(
        "targets                                        0.90                      0.90                              1.3"
    );
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

fn compare(load: &'static str, turns: &Turns, pingpong_us: f64) -> Compared {
    type Command = fn(&Figures) -> Figure;
    let alone = |command: Command, what: fn(&Figure) -> f64| {
        median(turns.alone.figures.iter().map(|figures| what(&command(figures))).collect())
    };
    let of_each = |command: Command, what: fn(Figure, Figure) -> f64| {
        let both = turns.alone.figures.iter().zip(&turns.pair.figures);
        both.map(move |(alone, pair)| what(command(alone), command(pair))).collect::<Vec<_>>()
    };
    let ratio = |command| quartiles(of_each(command, |alone, pair| pair.rate / alone.rate));
    // redis-benchmark tells its medians in steps of 8 us.
    let added = |command| middle_mean(of_each(command, |alone, pair| pair.p50_us - alone.p50_us));
    let (set, get): (Command, Command) = (|figures| figures.set, |figures| figures.get);
    let added_p50_us = added(set).max(added(get));
    let [set_low, set_ratio, set_high] = ratio(set);
    let [get_low, get_ratio, get_high] = ratio(get);
    Compared {
        load,
        alone_set_per_s: alone(set, |figure| figure.rate),
        alone_get_per_s: alone(get, |figure| figure.rate),
        set_ratio,
        get_ratio,
        set_quartiles: [set_low, set_high],
        get_quartiles: [get_low, get_high],
        added_p50_us,
        added_over_pingpong: added_p50_us / pingpong_us,
        exits_ratio: turns.pair.exits as f64 / turns.alone.exits as f64,
        packets_per_frame: turns.pair.packets as f64 / turns.pair.frames as f64,
        cpu_ratio: turns.pair.cpu.as_secs_f64() / turns.alone.cpu.as_secs_f64(),
    }
}

/// Bare round trips in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundTrip {
    pub(crate) median: f64,
    pub(crate) p99: f64,
}

impl RoundTrip {
    /// Of round trips that are made on a thread of their own on the primary's core.
    pub(crate) fn of(trips: impl FnOnce() -> Result<Vec<Duration>> + Send + 'static) -> Result<Self> {
        let trips = std::thread::spawn(move || {
            let _pinned = pin::to_core(CORES[0])?;
            trips()
        });
        let trips = trips.join().map_err(|_| anyhow::anyhow!("the ping-pong's thread panicked"))??;
        let mut trips: Vec<f64> = trips.into_iter().map(micros).collect();
        trips.sort_unstable_by(f64::total_cmp);
        let p99 = trips.get(trips.len() * 99 / 100).copied().context("no round trip was made")?;
        Ok(Self { median: median(trips), p99 })
    }
}

/// Round trips between the two hosts, from the primary's core to the backup's.
pub(crate) fn ping_pong(bed: &Bed) -> Result<RoundTrip> {
    let listener = bed.lab.host(Host::Backup).enter(|| TcpListener::bind((BACKUP, 0)))??;
    let address = listener.local_addr()?;
    let client = bed.lab.host(Host::Primary).enter(|| TcpStream::connect(address))??;
    let (echo, _) = listener.accept()?;
    for stream in [&client, &echo] {
        stream.set_nodelay(true)?;
    }
    RoundTrip::of(move || {
        let mut bare = PingPong::open(client, echo, CORES[1], FRAME, ACK_FRAME_LEN)?;
        (0..TRIPS).map(|_| bare.trip()).collect()
    })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
