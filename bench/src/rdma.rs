//! The ack's round trip over RDMA against TCP over the same link.
//!
//! The same channel each time, from append to the gate, opened anew for each turn so that no thread of
//! one looks for news while another is measured. Every kind of ack in every way of waiting that the config has, and a
//! ping-pong of bare one-sided writes, as `ib_write_lat` does it. What is compared are medians per turn: each way of RDMA
//! with TCP that waits in the same way, and beside that with TCP in its fastest.

use anyhow::Result;
use serde::Serialize as Json;
use std::time::Duration;

use crate::pin;

mod bed;
pub(crate) mod delay;
mod together;
mod turns;
mod ways;

use bed::Bed;
use together::Together;
use turns::{LOW, MEDIAN, Ratios, TAIL, Taken};
use ways::{Ack, Way};

#[derive(Debug, Json)]
struct Row {
    transport: String,
    rtt_us_p05: f64,
    rtt_us_p50: f64,
    rtt_us_p99: f64,
    /// CPU time of both ends and their threads, kernel included, per round trip.
    cpu_us: f64,
    /// Against TCP that waits in the same way.
    over_tcp: Option<f64>,
    /// Against the fastest way of TCP.
    over_fastest_tcp: f64,
}

#[derive(Debug, Json)]
struct Report {
    bench: &'static str,
    /// The best that the config offers, against TCP that waits in the same way; and which that is.
    rdma_over_tcp_rtt: Option<f64>,
    rdma_over_tcp_rtt_of: Way,
    /// The best with `ack = "read"`, likewise.
    rdma_over_tcp_rtt_read: Option<f64>,
    rdma_over_tcp_rtt_read_of: Way,
    /// Why the two are null.
    reason: Option<String>,
    /// The part of the time for which one of the two cores stood still.
    one_core_away: f64,
    /// Both by the fifth of 100 trips instead of the median.
    rdma_over_tcp_rtt_p05: f64,
    rdma_over_tcp_rtt_p05_of: Way,
    rdma_over_tcp_rtt_read_p05: f64,
    /// Each kind of ack, and bare writes, in the fastest way against TCP in its fastest.
    rdma_placed_over_fastest_tcp_rtt: f64,
    rdma_read_over_fastest_tcp_rtt: f64,
    rdma_bare_over_fastest_tcp_rtt: f64,
    /// Acks of each kind against a round trip of bare writes of the same size: medians, and the 99th of 100.
    rdma_write_over_bare: f64,
    rdma_write_over_bare_p99: f64,
    rdma_placed_over_bare: f64,
    rows: Vec<Row>,
    inside_emulation: bool,
    verdict: &'static str,
}

/// Measures, prints a table and one line of JSON.
///
/// # Errors
/// There is no bed (tests/rdma/bed), or no connection on it.
pub(crate) fn run(turns: u32, trips: u32, client_core: usize, backup_core: usize) -> Result<()> {
    let bed = Bed::find()?;
    let _pinned = pin::to_core(client_core)?;
    let mut all =
        Way::all().into_iter().map(Some).chain([None]).map(Taken::new).collect::<Result<Vec<_>>>()?;
    let tcp = Way::all()[0].link();
    let frame = bed.channel(&tcp, backup_core)?.frame_len()?;
    let mut together = Together::default();
    for _ in 0..turns {
        for taken in &mut all {
            // What is left of the turn before is taken down by then.
            std::thread::sleep(Duration::from_millis(50));
            together.look(backup_core)?;
            match taken.way {
                Some(way) => {
                    let mut channel = bed.channel(&way.link(), backup_core)?;
                    taken.turn(trips, || channel.trip())?;
                }
                None => {
                    let mut bare = bed.bare(frame, backup_core)?;
                    taken.turn(trips, || Ok(bare.trip()?))?;
                }
            }
        }
    }
    let ratios = Ratios(&all);
    let rows: Vec<Row> = all.iter().map(|taken| row(taken, &ratios, turns * trips)).collect();
    println!(
        "append to ack, in the same run       p05          p50          p99          CPU     by TCP waiting alike, by the fastest TCP"
    );
    for row in &rows {
        let over_tcp = row.over_tcp.map_or_else(|| "     ".to_owned(), |ratio| format!("{ratio:.3}"));
        println!(
            "{:<30} {:9.1} us {:9.1} us {:9.1} us {:9.1} us   {over_tcp}   {:.3}",
            row.transport, row.rtt_us_p05, row.rtt_us_p50, row.rtt_us_p99, row.cpu_us, row.over_fastest_tcp
        );
    }
    let (best_way, best) = ratios.best(MEDIAN, &[Ack::Read, Ack::Placed]);
    let (read_way, read) = ratios.best(MEDIAN, &[Ack::Read]);
    println!("rdma_over_tcp_rtt {best:.3} with {best_way}; rdma_over_tcp_rtt_read {read:.3} with {read_way}");
    let (low_way, low) = ratios.best(LOW, &[Ack::Read, Ack::Placed]);
    let (low_read_way, low_read) = ratios.best(LOW, &[Ack::Read]);
    println!("by the fifth of 100 trips: {low:.3} with {low_way}; {low_read:.3} with {low_read_way}");
    let reason = together.doubt();
    if let Some(reason) = &reason {
        println!("not to be believed: {reason}");
    }
    println!("one of the two cores stood still for {:.1} % of the time", together.away() * 100.0);
    let figure = |ratio| reason.is_none().then_some(ratio);
    let is = |ack: Ack| move |way: Option<Way>| way.is_some_and(|way| way.ack == ack);
    let report = Report {
        bench: "channel-rdma",
        rdma_over_tcp_rtt: figure(best),
        rdma_over_tcp_rtt_of: best_way,
        rdma_over_tcp_rtt_read: figure(read),
        rdma_over_tcp_rtt_read_of: read_way,
        one_core_away: together.away(),
        rdma_over_tcp_rtt_p05: low,
        rdma_over_tcp_rtt_p05_of: low_way,
        rdma_over_tcp_rtt_read_p05: low_read,
        rdma_placed_over_fastest_tcp_rtt: ratios.of(MEDIAN, is(Ack::Placed), is(Ack::Tcp)),
        rdma_read_over_fastest_tcp_rtt: ratios.of(MEDIAN, is(Ack::Read), is(Ack::Tcp)),
        rdma_bare_over_fastest_tcp_rtt: ratios.over_fastest_tcp(None),
        rdma_write_over_bare: ratios.of(MEDIAN, is(Ack::Read), |way| way.is_none()),
        rdma_write_over_bare_p99: ratios.of(TAIL, is(Ack::Read), |way| way.is_none()),
        rdma_placed_over_bare: ratios.of(MEDIAN, is(Ack::Placed), |way| way.is_none()),
        rows,
        inside_emulation: std::env::var_os("TANDEM_IN_VNG").is_some(),
        verdict: match figure(best) {
            Some(best) if best <= 0.7 => "ok",
            Some(_) => "missed",
            None => "not taken",
        },
        reason,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn row(taken: &Taken, ratios: &Ratios<'_>, trips: u32) -> Row {
    let tenth = |value: f64| (value * 10.0).round() / 10.0;
    Row {
        transport: taken.way.map_or_else(|| "RDMA, bare writes".to_owned(), |way| way.to_string()),
        rtt_us_p05: tenth(taken.histogram.value_at_quantile(0.05) as f64 / 1000.0),
        rtt_us_p50: tenth(taken.histogram.value_at_quantile(0.5) as f64 / 1000.0),
        rtt_us_p99: tenth(taken.histogram.value_at_quantile(0.99) as f64 / 1000.0),
        cpu_us: tenth(taken.cpu.as_secs_f64() * 1e6 / f64::from(trips)),
        over_tcp: taken.way.map(|way| ratios.over_tcp(MEDIAN, way)),
        over_fastest_tcp: ratios.over_fastest_tcp(taken.way),
    }
}
