//! What the transport's options bring on this machine: each against plain receiving, in turns within one run.

use anyhow::Result;
use serde::Serialize as Json;
use std::time::Duration;
use tandem_logchan::transport::tcp::{Receive, TcpConfig};
use tandem_tests::median::median;

use super::{Channel, thousandth};

/// Bytes of an entry, for the throughput.
const ENTRY: usize = 16 << 10;

/// One option.
#[derive(Debug, Json)]
pub(super) struct Row {
    pub(super) option: &'static str,
    /// The ack's round trip, and against the first row's.
    pub(super) ack_rtt_us: f64,
    pub(super) rtt_ratio: f64,
    /// Of 16 KiB entries, and against the first row's.
    pub(super) gbit_s: f64,
    pub(super) throughput_ratio: f64,
}

/// Name, the transport's config, and for how long the replay looks before it sleeps.
fn options() -> [(&'static str, TcpConfig, Duration); 7] {
    let default = TcpConfig::default();
    let asleep = Duration::ZERO;
    [
        ("plain", default, asleep),
        ("registered receive", TcpConfig { receive: Receive::Registered, ..default }, asleep),
        ("multishot receive", TcpConfig { receive: Receive::Multishot, ..default }, asleep),
        (
            "registered send, zero copy",
            TcpConfig { registered: true, zero_copy_from: 64 << 10, ..default },
            asleep,
        ),
        ("spin 50 us", TcpConfig { spin: Duration::from_micros(50), ..default }, asleep),
        ("NAPI 50 us", TcpConfig { busy_poll: Duration::from_micros(50), ..default }, asleep),
        ("replay looks for 1 ms", default, Duration::from_millis(1)),
    ]
}

/// Turns of all options; `trips` round trips and a quarter second of log each.
pub(super) fn measure(turns: u32, trips: u32, backup_core: usize) -> Result<Vec<Row>> {
    if turns == 0 {
        return Ok(Vec::new());
    }
    let mut figures = options().map(|_| [Vec::new(), Vec::new(), Vec::new(), Vec::new()]);
    for turn in 0..turns as usize {
        // Each turn begins with another one: who comes first finds the caches cold.
        let mut this = options().map(|_| (0.0, 0.0));
        for at in 0..this.len() {
            let at = (turn + at) % this.len();
            let (_, config, poll) = &options()[at];
            let mut channel = Channel::open(backup_core, config, *poll)?;
            for _ in 0..trips / 10 {
                channel.trip()?;
            }
            let times: Vec<f64> =
                (0..trips).map(|_| Ok(channel.trip()?.as_secs_f64() * 1e6)).collect::<Result<_>>()?;
            channel.fill(ENTRY, Duration::from_millis(50))?;
            this[at] = (median(times), channel.fill(ENTRY, Duration::from_millis(250))?);
        }
        let base = this[0];
        for ((time, gbit_s), [trip, over, rate, more]) in this.into_iter().zip(&mut figures) {
            trip.push(time);
            over.push(time / base.0);
            rate.push(gbit_s);
            more.push(gbit_s / base.1);
        }
    }
    let rows = options().into_iter().zip(figures).map(|((option, ..), [trip, over, rate, more])| Row {
        option,
        ack_rtt_us: thousandth(median(trip)),
        rtt_ratio: thousandth(median(over)),
        gbit_s: thousandth(median(rate)),
        throughput_ratio: thousandth(median(more)),
    });
    Ok(rows.collect())
}
