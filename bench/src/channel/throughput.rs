//! How many bytes of log a second, for entries of several sizes, against iperf3 over the same loopback.
//!
//! Both sides as on two hosts: who sends on one core, who receives on the other. The channel's entries are
//! encoded, framed, checksummed, acknowledged and put into the backup's ring; what counts are their
//! payloads. iperf3 moves bytes out of one buffer into another and nothing else, in the block size that
//! it chooses itself; [`summed`] is half-way between the two. Turns alternate; what is compared are medians.

use anyhow::{Result, ensure};
use serde::Serialize as Json;
use std::time::{Duration, Instant};
use tandem_logchan::codec::FrameBuf;
use tandem_logchan::frame::{Flags, HEADER_LEN, Kind, frame_len};
use tandem_logchan::primary::AppendError;
use tandem_logchan::transport::{ReceiveHalf, SendHalf};
use tandem_tests::median::median;

use super::iperf::Iperf;
use super::summed;
use super::{Batch, Channel, HEADER, WAIT, thousandth};

/// Payloads of the entries, in bytes.
pub(super) const SIZES: [usize; 4] = [1 << 10, 4 << 10, 16 << 10, 64 << 10];

/// One size of entries.
#[derive(Debug, Json)]
pub(super) struct Row {
    pub(super) entry_bytes: usize,
    /// Of payload.
    pub(super) gbit_s: f64,
    /// `None` without iperf3.
    pub(super) over_iperf: Option<f64>,
    /// Of entries that are copied, summed and sent, and nothing else.
    pub(super) summed_gbit_s: f64,
    /// `None` without iperf3.
    pub(super) summed_over_iperf: Option<f64>,
}

/// What came out.
#[derive(Debug)]
pub(super) struct Throughput {
    pub(super) rows: Vec<Row>,
    /// The least of the rows' ratios, or why there is none.
    pub(super) over_iperf: Result<f64, String>,
    /// Of iperf3.
    pub(super) iperf_gbit_s: Option<f64>,
}

/// Turns of iperf3 and of a channel with each size of entries, `time` each.
pub(super) fn measure<S: SendHalf, R: ReceiveHalf>(
    channel: &mut Channel<S, R>,
    turns: u32,
    time: Duration,
    cores: [usize; 2],
) -> Result<Throughput> {
    let iperf = Iperf::find(cores);
    let mut theirs = Vec::new();
    let mut ours = SIZES.map(|_| (Vec::new(), Vec::new()));
    for size in SIZES {
        channel.fill(size, time / 4)?;
    }
    for _ in 0..turns {
        if let Ok(iperf) = &iperf {
            theirs.push(iperf.gbit_s(time)?);
        }
        for (size, rates) in SIZES.iter().zip(&mut ours) {
            rates.0.push(channel.fill(*size, time)?);
            rates.1.push(summed::gbit_s(*size, time, cores[1])?);
        }
    }
    let iperf_gbit_s = (!theirs.is_empty()).then(|| median(theirs));
    let rows: Vec<Row> = SIZES
        .iter()
        .zip(ours)
        .map(|(&entry_bytes, (ours, summed))| {
            let [gbit_s, summed_gbit_s] = [ours, summed].map(|rates| thousandth(median(rates)));
            let over = |rate: f64| iperf_gbit_s.map(|iperf| thousandth(rate / iperf));
            let (over_iperf, summed_over_iperf) = (over(gbit_s), over(summed_gbit_s));
            Row { entry_bytes, gbit_s, over_iperf, summed_gbit_s, summed_over_iperf }
        })
        .collect();
    let least = || rows.iter().filter_map(|row| row.over_iperf).fold(f64::INFINITY, f64::min);
    let over_iperf = iperf.map(|_| least());
    Ok(Throughput { rows, over_iperf, iperf_gbit_s })
}

impl<S: SendHalf, R: ReceiveHalf> Channel<S, R> {
    /// Appends entries with so many bytes of payload for so long, and waits until the backup has
    /// acknowledged the last. Gbit/s of payload.
    pub(super) fn fill(&mut self, payload: usize, time: Duration) -> Result<f64> {
        let batch = self.batch_of(payload)?;
        let start = Instant::now();
        let mut entries = 0u64;
        while start.elapsed() < time {
            for _ in 0..(256 << 10) / payload {
                self.append_when_there_is_room(&batch)?;
                entries += 1;
            }
        }
        self.drain()?;
        Ok(entries as f64 * payload as f64 * 8.0 / start.elapsed().as_nanos() as f64)
    }

    fn append_when_there_is_room(&mut self, batch: &Batch) -> Result<()> {
        loop {
            match self.sender.append(Kind::Batch, Flags::NONE, 0, batch) {
                Ok(_) => return Ok(()),
                Err(AppendError::Full { .. }) => {
                    self.sender.offer()?;
                    let start = self.start;
                    self.acks.poll(WAIT, || start.elapsed().as_nanos() as u64)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A batch that encodes to just so many bytes.
    fn batch_of(&mut self, payload: usize) -> Result<Batch> {
        let batch = |blob| Batch { blob: vec![7; blob], ..self.batch.clone() };
        let empty = FrameBuf::new().encode(&HEADER, &batch(0))?.len();
        let batch = batch(payload + HEADER_LEN - empty);
        let framed = FrameBuf::new().encode(&HEADER, &batch)?.len();
        ensure!(framed == frame_len(payload), "{framed} bytes for {payload}");
        Ok(batch)
    }
}
