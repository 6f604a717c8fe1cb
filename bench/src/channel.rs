//! The log channel against what it is made of.
//!
//! A: a bare ping-pong over io_uring and loopback TCP, of the same sizes as a log frame and an ack,
//! each side one system call per message: send and wait for the answer. B: append, encode, flush, the
//! receive thread's checks and ring, the ack, the ack's checks. Client on one core, echo and backup on
//! another; A and B take turns, and what is compared are medians.

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use rkyv::{Archive, Serialize};
use serde::Serialize as Json;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tandem_logchan::ack::{ACK_FRAME_LEN, AckState};
use tandem_logchan::backup::{self, LogReader, LogReceiver, Next};
use tandem_logchan::frame::{Flags, Kind};
use tandem_logchan::primary::{AckReceiver, LogSender};
use tandem_logchan::progress::Executed;
use tandem_logchan::transport::tcp::{self, TcpConfig, TcpReceive, TcpSend};
use tandem_logchan::transport::{Duplex, ReceiveHalf, SendHalf};

use crate::pin;
use crate::pingpong::PingPong;

const WAIT: Option<Duration> = Some(Duration::from_secs(5));

/// What to measure, and how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Turns of A and B each.
    #[arg(long, default_value_t = 12)]
    turns: u32,
    /// Round trips per turn.
    #[arg(long, default_value_t = 2000)]
    trips: u32,
    /// Core of the client, the primary.
    #[arg(long, default_value_t = 0)]
    client_core: usize,
    /// Core of the echo, the backup.
    #[arg(long, default_value_t = 1)]
    backup_core: usize,
    /// `rdma`: the ack's round trip over RDMA against TCP over the same link, between the two network
    /// namespaces of tests/rdma/bed.
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Transport {
    #[default]
    Tcp,
    Rdma,
}

/// A batch as the machine logs it for one small input.
#[derive(Archive, Serialize, Debug)]
struct Batch {
    position: u64,
    time: u64,
    entries: Vec<Entry>,
    blob: Vec<u8>,
}

#[derive(Archive, Serialize, Clone, Copy, Debug)]
enum Entry {
    Time { nanos: u64 },
    Output { digest: u64 },
}

#[derive(Debug, Json)]
struct Report {
    bench: &'static str,
    frame_bytes: usize,
    ack_bytes: usize,
    pingpong_us: f64,
    ack_rtt_us: f64,
    ack_rtt_over_pingpong: f64,
    pingpong_us_p99: f64,
    ack_rtt_us_p99: f64,
    append_encode_ns: f64,
    verdict: &'static str,
}

/// Measures, prints a table and one line of JSON.
///
/// # Errors
/// The machine cannot do it: cores, io_uring, loopback.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.turns > 0 && args.trips > 0, "nothing to measure");
    if args.transport == Transport::Rdma {
        #[cfg(feature = "rdma")]
        return crate::rdma::run(args.turns, args.trips, args.client_core, args.backup_core);
        #[cfg(not(feature = "rdma"))]
        anyhow::bail!(
            "this tandem-bench is built without RDMA: cargo build --release --features rdma -p tandem-bench"
        );
    }
    pin::to_core(args.client_core)?;
    let mut channel = Channel::open(args.backup_core)?;
    let frame = channel.frame_len()?;
    let (client, echo) = streams()?;
    let mut bare = PingPong::open(client, echo, args.backup_core, frame, ACK_FRAME_LEN)?;
    for _ in 0..args.trips {
        bare.trip()?;
        channel.trip()?;
    }
    let mut turns = Vec::new();
    let mut all = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    for _ in 0..args.turns {
        let mut this = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
        for _ in 0..args.trips {
            this.0.record(bare.trip()?.as_nanos() as u64)?;
        }
        for _ in 0..args.trips {
            this.1.record(channel.trip()?.as_nanos() as u64)?;
        }
        turns.push(this.1.value_at_quantile(0.5) as f64 / this.0.value_at_quantile(0.5) as f64);
        all.0.add(&this.0)?;
        all.1.add(&this.1)?;
    }
    let append = channel.append_cost()?;
    turns.sort_by(f64::total_cmp);
    let us = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    let ratio = turns[turns.len() / 2];
    let report = Report {
        bench: "channel",
        frame_bytes: frame,
        ack_bytes: ACK_FRAME_LEN,
        pingpong_us: us(&all.0, 0.5),
        ack_rtt_us: us(&all.1, 0.5),
        ack_rtt_over_pingpong: (ratio * 1000.0).round() / 1000.0,
        pingpong_us_p99: us(&all.0, 0.99),
        ack_rtt_us_p99: us(&all.1, 0.99),
        append_encode_ns: (append * 10.0).round() / 10.0,
        verdict: if ratio <= 1.3 && append <= 100.0 { "ok" } else { "missed" },
    };
    println!(
        "bare ping-pong, {frame} there and {ACK_FRAME_LEN} back   p50 {:7.2} us   p99 {:7.2} us",
        report.pingpong_us, report.pingpong_us_p99
    );
    println!(
        "append to ack                         p50 {:7.2} us   p99 {:7.2} us",
        report.ack_rtt_us, report.ack_rtt_us_p99
    );
    println!(
        "ratio per turn: {:.3} to {:.3}, median {ratio:.3} (target 1.3)",
        turns[0],
        turns[turns.len() - 1]
    );
    println!("append and encode of a small entry: {append:.1} ns (target 100)");
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// B: a real channel with its receive thread and its replay thread.
pub(crate) struct Channel<S, R> {
    sender: LogSender<S>,
    acks: AckReceiver<R>,
    state: Arc<AckState>,
    batch: Batch,
    start: Instant,
}

impl Channel<TcpSend, TcpReceive> {
    fn open(backup_core: usize) -> Result<Self> {
        let (client, echo) = streams()?;
        let (send, receive) = tcp::primary(client, &TcpConfig::default())?;
        let duplex = tcp::backup(echo, &TcpConfig::default())?;
        let state = Arc::new(AckState::new());
        let (receiver, reader) = backup::pair(duplex, 1, 0);
        let sender = LogSender::new(send, 1, state.clone());
        let acks = AckReceiver::new(receive, 1, state.clone());
        Ok(Self::new(sender, acks, state, (receiver, reader), backup_core))
    }
}

impl<S: SendHalf, R: ReceiveHalf> Channel<S, R> {
    /// Both ends; the backup's run on threads of their own.
    pub(crate) fn new<D: Duplex + 'static>(
        sender: LogSender<S>,
        acks: AckReceiver<R>,
        state: Arc<AckState>,
        (mut receiver, mut reader): (LogReceiver<D>, LogReader),
        backup_core: usize,
    ) -> Self {
        // The threads end when the sender is dropped: the stream ends, then the log.
        std::thread::spawn(move || {
            pin::to_core(backup_core)?;
            while receiver.poll(None).is_ok() {}
            anyhow::Ok(())
        });
        std::thread::spawn(move || {
            pin::to_core(backup_core)?;
            while let Next::Frame(frame) = reader.next(None)? {
                let sequence = frame.header.sequence;
                reader.progress().store(Executed { sequence, position: sequence, digest: sequence });
                reader.release();
            }
            anyhow::Ok(())
        });
        Self {
            sender,
            acks,
            state,
            batch: Batch {
                position: 1,
                time: 2,
                entries: vec![Entry::Time { nanos: 3 }, Entry::Output { digest: 4 }],
                blob: Vec::new(),
            },
            start: Instant::now(),
        }
    }

    fn append(&mut self, flags: Flags) -> Result<u64> {
        self.batch.position += 1;
        Ok(self.sender.append(Kind::Batch, flags, self.batch.position, &self.batch)?)
    }

    /// Bytes of an entry's frame; one is sent.
    pub(crate) fn frame_len(&mut self) -> Result<usize> {
        let before = self.sender.bytes();
        self.append(Flags::OUTPUT)?;
        self.drain()?;
        Ok((self.sender.bytes() - before) as usize)
    }

    fn drain(&mut self) -> Result<()> {
        self.sender.flush()?;
        while self.state.received() < self.sender.sent() {
            let start = self.start;
            self.acks.poll(WAIT, || start.elapsed().as_nanos() as u64)?;
        }
        Ok(())
    }

    /// One entry with an output: from before the append until the gate may open.
    pub(crate) fn trip(&mut self) -> Result<Duration> {
        let start = Instant::now();
        let sequence = self.append(Flags::OUTPUT)?;
        while self.state.received() < sequence {
            self.acks.poll(WAIT, || start.elapsed().as_nanos() as u64)?;
        }
        Ok(start.elapsed())
    }

    /// Nanoseconds per append without flush: the median over many runs of a hundred.
    fn append_cost(&mut self) -> Result<f64> {
        const RUN: u32 = 100;
        let mut costs = Vec::new();
        for _ in 0..2000 {
            let start = Instant::now();
            for _ in 0..RUN {
                self.append(Flags::NONE)?;
            }
            costs.push(start.elapsed().as_nanos() as f64 / f64::from(RUN));
            self.drain()?;
        }
        costs.sort_by(f64::total_cmp);
        Ok(costs[costs.len() / 2])
    }
}

fn streams() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    let client = tcp::connect(listener.local_addr()?, Duration::from_secs(5))?;
    let echo = listener.accept()?.0;
    for stream in [&client, &echo] {
        stream.set_nodelay(true)?;
    }
    Ok((client, echo))
}
