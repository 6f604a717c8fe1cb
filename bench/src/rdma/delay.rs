//! The output delay of pairs whose log goes over RDMA, against bare one-sided writes between the same hosts.
//!
//! As over TCP (`channel/output.rs`), for each kind of ack, inside a machine in software emulation whose CPUs take turns
//! (`tests/linux/in-vng --counted-hosts`): each is kept busy, so that it is a processor of a steady speed.

use anyhow::{Context, Result, bail};
use serde::Serialize as Json;
use tandem_tests::bed::{Bed as PairBed, CORES, Program};
use tandem_tests::config::{Guest, Pace, RdmaLog, Spec};
use tandem_tests::lab;
use tandem_vmm::host::shutdown::Shutdown;

use super::bed::Bed;
use crate::channel::output::{self, Row};
use crate::channel::{OUTPUT_DELAY, tell_delays};
use crate::pair::{FRAME, RoundTrip};
use crate::paper::fill::Fill;

/// Clients, and requests of each command.
const LOADS: [(u32, u64); 2] = [(1, 200), (50, 3_000)];

#[derive(Debug, Json)]
struct OfAck {
    ack: &'static str,
    loads: Vec<Row>,
}

#[derive(Debug, Json)]
struct Report {
    bench: &'static str,
    /// The worse of the loads, with the better of the acks: what the config offers.
    output_delay_over_rdma_rtt_p50: f64,
    output_delay_over_rdma_rtt_p99: Option<f64>,
    output_delay_over_rdma_rtt_of: &'static str,
    /// Why the second is null.
    reason: Option<String>,
    acks: Vec<OfAck>,
    inside_emulation: bool,
    verdict: &'static str,
}

/// Measures, prints a table and one line of JSON.
///
/// # Errors
/// No lab or no soft RoCE is here, or a pair does not come up.
pub(crate) fn run(turns: u32, trips: u32) -> Result<()> {
    if let Some(obstacle) = lab::obstacle() {
        bail!("no lab can be built here: {obstacle}");
    }
    let _fill = Fill::start()?;
    let spec = Spec { name: "bench".to_owned(), guest: Guest::Embedded, pace: Pace::EMULATED };
    let mut bed = PairBed::new("bench-rdma", Program::tandem()?, spec, Shutdown::on_signals()?)?;
    let mut acks = Vec::new();
    for ack in ["placed", "read"] {
        bed.over_rdma(RdmaLog { ack: ack.to_owned(), completion: "events".to_owned() });
        let bare = |bed: &PairBed| bare(bed, trips);
        let rows = LOADS.map(|load| output::row(&mut bed, load, turns, &bare));
        let loads = rows.into_iter().collect::<Result<Vec<_>>>()?;
        println!("ack = {ack:?}");
        tell_delays(&loads);
        acks.push(OfAck { ack, loads });
    }
    let worst = |of: &OfAck, ratio: fn(&Row) -> f64| of.loads.iter().map(ratio).fold(0.0, f64::max);
    let half = |of: &OfAck| worst(of, |row| row.over_rtt_p50);
    let best = acks.iter().min_by(|a, b| half(a).total_cmp(&half(b))).context("no kind of ack")?;
    // What no bare write does, no output can do that waits for one.
    let bare_tail = worst(best, |row| row.rtt_us_p99 / row.rtt_us);
    let reason = (bare_tail > OUTPUT_DELAY.1).then(|| {
        format!(
            "99 of 100 bare writes take up to {bare_tail:.1} times their median here, and the target is {}",
            OUTPUT_DELAY.1
        )
    });
    if let Some(reason) = &reason {
        println!("p99 says nothing: {reason}");
    }
    let tail = worst(best, |row| row.over_rtt_p99);
    let holds = half(best) <= OUTPUT_DELAY.0 && (reason.is_some() || tail <= OUTPUT_DELAY.1);
    let report = Report {
        bench: "output-delay-rdma",
        output_delay_over_rdma_rtt_p50: half(best),
        output_delay_over_rdma_rtt_p99: reason.is_none().then_some(tail),
        output_delay_over_rdma_rtt_of: best.ack,
        inside_emulation: std::env::var_os("TANDEM_IN_VNG").is_some(),
        reason,
        verdict: if holds { "ok" } else { "missed" },
        acks,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Bare writes there and back, from the primary's core to the backup's; a tenth more before that do not count.
fn bare(bed: &PairBed, trips: u32) -> Result<RoundTrip> {
    let devices = bed.rdma_devices().context("no RDMA devices")?;
    devices.renew(&bed.lab)?;
    let hosts = Bed::of(&bed.lab);
    RoundTrip::of(move || {
        let mut bare = hosts.bare(FRAME, CORES[1])?;
        for _ in 0..trips / 10 {
            bare.trip()?;
        }
        (0..trips).map(|_| Ok(bare.trip()?)).collect()
    })
}
