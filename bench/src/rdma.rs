//! The ack's round trip over RDMA against TCP over the same link.
//!
//! The same channel each time, from append to the gate, opened anew for each turn so that no thread of
//! one looks for news while another is measured. Both transports once asleep between messages and once
//! looking; RDMA also looking for a while only. What is compared are medians per turn.

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use serde::Serialize as Json;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tandem_logchan::channel::{self, Link};
use tandem_logchan::codec::SchemaDigest;
use tandem_logchan::handshake::{Hello, Identity, PreSharedKey, Side};
use tandem_logchan::transport::rdma::{Completion, RdmaConfig};
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
    /// Against TCP that waits in the same way: the middle of the turns.
    over_tcp: f64,
}

#[derive(Debug, Json)]
struct Report {
    bench: &'static str,
    rdma_over_tcp_rtt: f64,
    rdma_over_tcp_rtt_events: f64,
    rows: Vec<Row>,
    inside_emulation: bool,
    verdict: &'static str,
}

/// A way to carry the log, and which of [`ways`] it is compared with.
fn ways() -> [(&'static str, Link, usize); 5] {
    let tcp = |spin| Link::Tcp(TcpConfig { spin, ..TcpConfig::default() });
    let rdma =
        |completion| Link::Rdma(RdmaConfig { completion, patience: PATIENCE, ..RdmaConfig::default() });
    [
        ("TCP, asleep", tcp(Duration::ZERO), 0),
        ("TCP, looking", tcp(SPIN), 1),
        ("RDMA, events", rdma(Completion::Events), 0),
        ("RDMA, adaptive", rdma(Completion::Adaptive(SPIN)), 1),
        ("RDMA, busy", rdma(Completion::Busy), 1),
    ]
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
    for _ in &ways {
        all.push((Histogram::<u64>::new(3)?, Duration::ZERO, Vec::new()));
    }
    for _ in 0..turns {
        let mut medians = Vec::new();
        for ((_, link, _), (histogram, cpu, _)) in ways.iter().zip(&mut all) {
            let mut channel = bed.channel(link, backup_core)?;
            for _ in 0..trips / 10 {
                channel.trip()?;
            }
            let mut this = Histogram::<u64>::new(3)?;
            let before = cpu_time();
            for _ in 0..trips {
                this.record(channel.trip()?.as_nanos() as u64)?;
            }
            *cpu += cpu_time().saturating_sub(before);
            medians.push(this.value_at_quantile(0.5) as f64);
            histogram.add(&this)?;
        }
        for (((_, _, base), (_, _, ratios)), median) in ways.iter().zip(&mut all).zip(&medians) {
            ratios.push(median / medians[*base]);
        }
    }
    let rows: Vec<Row> =
        ways.iter().zip(&mut all).map(|(&(name, ..), all)| row(name, all, turns * trips)).collect();
    println!(
        "append to ack, in the same run       p50         p99         CPU        against TCP waiting alike"
    );
    for row in &rows {
        println!(
            "{:<30} {:9.1} us {:9.1} us {:9.1} us   {:.3}",
            row.transport, row.rtt_us_p50, row.rtt_us_p99, row.cpu_us, row.over_tcp
        );
    }
    let best = rows[3].over_tcp.min(rows[4].over_tcp);
    let report = Report {
        bench: "channel-rdma",
        rdma_over_tcp_rtt: best,
        rdma_over_tcp_rtt_events: rows[2].over_tcp,
        rows,
        inside_emulation: std::env::var_os("TANDEM_IN_VNG").is_some(),
        verdict: if best <= 0.7 { "ok" } else { "missed" },
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn row(transport: &'static str, all: &mut (Histogram<u64>, Duration, Vec<f64>), trips: u32) -> Row {
    let (histogram, cpu, ratios) = all;
    ratios.sort_by(f64::total_cmp);
    let tenth = |value: f64| (value * 10.0).round() / 10.0;
    Row {
        transport,
        rtt_us_p50: tenth(histogram.value_at_quantile(0.5) as f64 / 1000.0),
        rtt_us_p99: tenth(histogram.value_at_quantile(0.99) as f64 / 1000.0),
        cpu_us: tenth(cpu.as_secs_f64() * 1e6 / f64::from(trips)),
        over_tcp: (ratios[ratios.len() / 2] * 1000.0).round() / 1000.0,
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
        let ends = (backup.receiver, backup.reader);
        Ok(Channel::new(primary.sender, primary.acks, primary.state, ends, backup_core))
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
