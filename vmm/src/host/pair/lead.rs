//! Running the machine as the primary does, and as a backup that went live.

use std::sync::Arc;
use std::time::Duration;

use super::PairError;
use super::clock::now;
use super::host;
use super::log::PairLog;
use super::shared::{News, Order, Shared};
use crate::host::vcpu::inputs::HostInputs;
use crate::host::vcpu::kick::Kicker;
use crate::replay::recorder::{Pace, Recorder};
use crate::replay::run::{Ended, Run, drive};

/// How often the vCPU thread looks for orders at the latest, while it waits for one.
const LOOK: Duration = Duration::from_millis(100);

/// The recorder of a machine that leads.
pub(super) type Leader = Recorder<HostInputs, PairLog>;

/// Leads until ordered to halt, or until the guest ends. Call on the vCPU thread.
pub(super) fn lead(
    run: &mut Run,
    mut recorder: Leader,
    pace: Pace,
    shared: &Arc<Shared>,
) -> Result<(), PairError> {
    let _kicker = Kicker::start(run.machine.run_area(), Duration::from_nanos(pace.bound / 2))
        .map_err(host("start the vCPU's timer"))?;
    loop {
        let ended = drive(run, &mut recorder)?;
        shared.counters.update(run, recorder.traffic());
        if let Ended::Off(event) = ended {
            tracing::info!(?event, "the guest ended");
            recorder.commit_end(run)?;
            recorder.log.gate.seal(recorder.log.sent(), now());
            shared.tell(News::Ended(recorder.log.sent()));
            return Ok(());
        }
        match shared.order() {
            Order::Halt => return Ok(()),
            Order::Stop => {
                recorder.commit_end(run)?;
                shared.tell(News::Stopped(recorder.log.sent()));
                let mut order = Order::Stop;
                while order == Order::Stop {
                    order = shared.wait_a_while(&[Order::Stop], LOOK);
                }
                match order {
                    Order::Halt => return Ok(()),
                    Order::Alone => recorder.log.go_alone(),
                    _ => {}
                }
            }
            Order::Run | Order::Alone | Order::Wait => {}
        }
    }
}
