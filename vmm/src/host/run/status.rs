//! Status of a machine without a peer, for the control socket.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::host::config::Config;
use crate::host::control::{Role, ServeError, Server, Status, StatusSource};
use crate::host::lock;
use crate::host::vcpu::counters::{LogRates, SharedCounters};

/// What the operator sees.
struct Board {
    first: Status,
    started: Instant,
    /// Whether there is a log to tell of, and with it a digest.
    logs: bool,
    counters: Arc<SharedCounters>,
    rates: Mutex<LogRates>,
}

impl StatusSource for Board {
    fn status(&self) -> Status {
        let uptime = self.started.elapsed();
        let mut status = self.first.clone();
        status.uptime_ms = uptime.as_millis() as u64;
        self.counters.show(&mut status, &mut lock(&self.rates), uptime.as_nanos() as u64);
        if !self.logs {
            status.log.clear();
            status.digest = None;
        }
        status
    }

    fn failover(&self) -> Result<String, String> {
        Err("this VM runs alone: there is nobody to hand over to".to_owned())
    }
}

/// Serves the config's control socket, if it names one, with what `counters` say.
///
/// # Errors
/// When there can be no socket of that name.
pub(super) fn serve(
    config: &Config,
    logs: bool,
    counters: &Arc<SharedCounters>,
) -> Result<Option<Server>, ServeError> {
    let Some(path) = &config.control_socket else { return Ok(None) };
    let board = Board {
        first: Status::of(config, Role::Solo),
        started: Instant::now(),
        logs,
        counters: Arc::clone(counters),
        rates: Mutex::new(LogRates::new(0)),
    };
    Server::start(path, Arc::new(board)).map(Some)
}
