//! The ack's round trip over RDMA against TCP over the same link.
//!
//! The same channel each time, from append to the gate, opened anew for each turn so that no thread of
//! one looks for news while another is measured. Both transports asleep between messages and looking; RDMA
//! also looking for a while only, and with acks of either kind. Beside them a ping-pong of bare one-sided
//! writes, as `ib_write_lat` does it. What is compared are medians per turn: each kind of RDMA ack in its
//! fastest way with TCP in its fastest.

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use serde::Serialize as Json;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Duration;
use tandem_logchan::channel::{self, Link};
use tandem_logchan::codec::SchemaDigest;
use tandem_logchan::handshake::{Hello, Identity, PreSharedKey, Side};
use tandem_logchan::transport::rdma::{Completion, PingPong, RdmaConfig};
use tandem_logchan::transport::tcp::{self, TcpConfig};
use tandem_logchan::transport::{ReceiveHalf, SendHalf};

use crate::channel::Channel;
use crate::pin;

const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than a round trip in software emulation.
const SPIN: Duration = Duration::from_millis(1);

#[derive(Debug, Json)]
struct Row {
    transport: &'static str,
    rtt_us_p50: f64,
    rtt_us_p99: f64,
    /// CPU time of both ends and their threads, kernel included, per round trip.
    cpu_us: f64,
    /// Against the faster of the ways of TCP: the middle of the turns.
    over_tcp: f64,
}

#[derive(Debug, Json)]
struct Report {
    bench: &'static str,
    /// The backup's ack (`ack = "read"`), in its fastest way, against TCP in its fastest.
    rdma_over_tcp_rtt: f64,
    /// The same with both asleep between messages.
    rdma_over_tcp_rtt_events: f64,
    /// The write's completion (`ack = "placed"`), likewise.
    rdma_placed_over_tcp_rtt: f64,
    rdma_placed_over_tcp_rtt_events: f64,
    /// Bare writes against TCP in its fastest way: less than this no RDMA ack of the backup can take.
    rdma_bare_over_tcp_rtt: f64,
    /// Acks of each kind against a round trip of bare writes of the same size: medians, and the 99th of 100.
    rdma_write_over_bare: f64,
    rdma_write_over_bare_p99: f64,
    rdma_placed_over_bare: f64,
    rows: Vec<Row>,
    inside_emulation: bool,
    verdict: String,
}

/// Ways to carry the log; [`TCP`], [`READ`] and [`PLACED`] say which are which. The bare writes come last.
fn ways() -> [(&'static str, Link); 7] {
    let tcp = |spin| Link::Tcp(TcpConfig { spin, ..TcpConfig::default() });
    let rdma = |completion, placed| {
        Link::Rdma(RdmaConfig { completion, placed, patience: PATIENCE, ..RdmaConfig::default() })
    };
    [
        ("TCP, asleep", tcp(Duration::ZERO)),
        ("TCP, looking", tcp(SPIN)),
        ("RDMA read, events", rdma(Completion::Events, false)),
        ("RDMA read, adaptive", rdma(Completion::Adaptive(SPIN), false)),
        ("RDMA read, busy", rdma(Completion::Busy, false)),
        ("RDMA placed, events", rdma(Completion::Events, true)),
        ("RDMA placed, busy", rdma(Completion::Busy, true)),
    ]
}

const TCP: Range<usize> = 0..2;
const READ: Range<usize> = 2..5;
const PLACED: Range<usize> = 5..7;
const BARE: usize = 7;
const BARE_NAME: &str = "RDMA, bare writes";

/// All measurements of one way.
struct Taken {
    histogram: Histogram<u64>,
    cpu: Duration,
    /// Of each turn, in nanoseconds: the median, and the 99th of 100.
    turns: Vec<[f64; 2]>,
}

impl Taken {
    fn turn(&mut self, trips: u32, mut trip: impl FnMut() -> Result<Duration>) -> Result<()> {
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

/// The middle of the turns' ratios: the fastest of some ways by that of others. `which`: medians or 99ths.
fn ratio(all: &[Taken], ways: Range<usize>, others: Range<usize>, which: usize) -> f64 {
    let fastest = |ways: &Range<usize>, turn: usize| {
        all[ways.clone()].iter().map(|taken| taken.turns[turn][which]).fold(f64::INFINITY, f64::min)
    };
    let turns = 0..all[BARE].turns.len();
    let mut ratios: Vec<f64> = turns.map(|turn| fastest(&ways, turn) / fastest(&others, turn)).collect();
    ratios.sort_by(f64::total_cmp);
    (ratios[ratios.len() / 2] * 1000.0).round() / 1000.0
}

/// Measures, prints a table and one line of JSON.
///
/// # Errors
/// There is no bed (tests/rdma/bed), or no connection on it.
pub(crate) fn run(turns: u32, trips: u32, client_core: usize, backup_core: usize) -> Result<()> {
    let bed = Bed::find()?;
    pin::to_core(client_core)?;
    let ways = ways();
    let mut all = Vec::new();
    for _ in 0..=BARE {
        all.push(Taken { histogram: Histogram::new(3)?, cpu: Duration::ZERO, turns: Vec::new() });
    }
    let frame = bed.channel(&ways[0].1, backup_core)?.frame_len()?;
    for _ in 0..turns {
        for ((_, link), taken) in ways.iter().zip(&mut all) {
            let mut channel = bed.channel(link, backup_core)?;
            taken.turn(trips, || channel.trip())?;
        }
        let mut bare = bed.bare(frame, backup_core)?;
        all[BARE].turn(trips, || Ok(bare.trip()?))?;
    }
    let names = ways.iter().map(|(name, _)| *name).chain([BARE_NAME]);
    let rows: Vec<Row> = names.enumerate().map(|(n, name)| row(name, &all, n, turns * trips)).collect();
    println!(
        "append to ack, in the same run       p50         p99         CPU        against the faster TCP"
    );
    for row in &rows {
        println!(
            "{:<30} {:9.1} us {:9.1} us {:9.1} us   {:.3}",
            row.transport, row.rtt_us_p50, row.rtt_us_p99, row.cpu_us, row.over_tcp
        );
    }
    let best = ratio(&all, READ, TCP, 0);
    let bare = ratio(&all, BARE..BARE + 1, TCP, 0);
    let verdict = match (best <= 0.7, bare <= 0.7) {
        (true, _) => "ok".to_owned(),
        (false, true) => "missed".to_owned(),
        (false, false) => format!("missed: bare writes alone take {bare} of TCP's channel on this device"),
    };
    let report = Report {
        bench: "channel-rdma",
        rdma_over_tcp_rtt: best,
        rdma_over_tcp_rtt_events: ratio(&all, 2..3, 0..1, 0),
        rdma_placed_over_tcp_rtt: ratio(&all, PLACED, TCP, 0),
        rdma_placed_over_tcp_rtt_events: ratio(&all, 5..6, 0..1, 0),
        rdma_bare_over_tcp_rtt: bare,
        rdma_write_over_bare: ratio(&all, READ, BARE..BARE + 1, 0),
        rdma_write_over_bare_p99: ratio(&all, READ, BARE..BARE + 1, 1),
        rdma_placed_over_bare: ratio(&all, PLACED, BARE..BARE + 1, 0),
        rows,
        inside_emulation: std::env::var_os("TANDEM_IN_VNG").is_some(),
        verdict,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn row(transport: &'static str, all: &[Taken], n: usize, trips: u32) -> Row {
    let Taken { histogram, cpu, .. } = &all[n];
    let tenth = |value: f64| (value * 10.0).round() / 10.0;
    Row {
        transport,
        rtt_us_p50: tenth(histogram.value_at_quantile(0.5) as f64 / 1000.0),
        rtt_us_p99: tenth(histogram.value_at_quantile(0.99) as f64 / 1000.0),
        cpu_us: tenth(cpu.as_secs_f64() * 1e6 / f64::from(trips)),
        over_tcp: ratio(all, n..n + 1, TCP, 0),
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

/// The two namespaces of tests/rdma/bed.
#[derive(Clone, Debug)]
struct Bed {
    namespaces: [String; 2],
    backup: IpAddr,
}

impl Bed {
    fn find() -> Result<Self> {
        let bed = std::env::var("TANDEM_RDMA_BED").context("no RDMA bed: run this by tests/rdma/bench")?;
        let words: Vec<&str> = bed.split(' ').collect();
        ensure!(words.len() == 6, "TANDEM_RDMA_BED={bed}");
        Ok(Self { namespaces: [words[0], words[1]].map(str::to_owned), backup: words[3].parse()? })
    }

    /// Moves this thread into a side's namespace.
    fn enter(&self, side: usize) -> Result<()> {
        let namespace = File::open(format!("/run/netns/{}", self.namespaces[side]))?;
        // SAFETY: an open namespace.
        let done = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
        ensure!(done == 0, std::io::Error::last_os_error());
        Ok(())
    }

    fn channel(
        &self,
        link: &Link,
        backup_core: usize,
    ) -> Result<Channel<Box<dyn SendHalf>, Box<dyn ReceiveHalf>>> {
        self.enter(1)?;
        let listener = TcpListener::bind((self.backup, 0))?;
        let address = listener.local_addr()?;
        let (bed, there) = (self.clone(), *link);
        let backup = std::thread::spawn(move || {
            bed.enter(1)?;
            let (stream, _) = listener.accept()?;
            let key = PreSharedKey::new([7; 32]);
            anyhow::Ok(channel::backup(stream, hello(Side::Backup), &key, &there, PATIENCE, 0)?)
        });
        self.enter(0)?;
        let primary = self.primary(address, link);
        let backup = backup.join().map_err(|_| anyhow!("the backup's thread panicked"))??;
        let primary = primary?;
        let mut ends = (backup.receiver, backup.reader);
        if matches!(link, Link::Rdma(RdmaConfig { placed: true, .. })) {
            ends.0.count_as_placed();
        }
        Ok(Channel::new(primary.sender, primary.acks, primary.state, ends, backup_core))
    }

    /// Bare writes of `len` bytes there and back; who answers ends with this.
    fn bare(&self, len: usize, echo_core: usize) -> Result<PingPong> {
        self.enter(1)?;
        let listener = TcpListener::bind((self.backup, 0))?;
        let address = listener.local_addr()?;
        let bed = self.clone();
        let key = || PreSharedKey::new([7; 32]);
        std::thread::spawn(move || {
            bed.enter(1)?;
            pin::to_core(echo_core)?;
            let mut end = PingPong::open(listener.accept()?.0, Side::Backup, &key(), len, PATIENCE)?;
            while end.echo().is_ok() {}
            anyhow::Ok(())
        });
        self.enter(0)?;
        Ok(PingPong::open(tcp::connect(address, PATIENCE)?, Side::Primary, &key(), len, PATIENCE)?)
    }

    fn primary(&self, address: SocketAddr, link: &Link) -> Result<channel::PrimaryEnds> {
        let stream = tcp::connect(address, PATIENCE)?;
        let key = PreSharedKey::new([7; 32]);
        Ok(channel::primary(stream, hello(Side::Primary), &key, link, PATIENCE)?)
    }
}

fn hello(side: Side) -> Hello {
    Hello {
        side,
        generation: 1,
        encrypt: false,
        schema: SchemaDigest::of("bench"),
        identity: Identity::builder().build(),
    }
}
