//! The backup takes over, and what it says on the way.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use tandem_tests::side::Side;
use tandem_tests::timeline;
use tandem_vmm::host::control::Role;

use crate::report::Event;

/// Waits until a backup runs the VM. What it logged from the moment on when the peer was missed.
///
/// # Errors
/// When it never does.
pub(super) fn go_live(backup: &mut Side, patience: Duration) -> Result<Vec<Event>> {
    backup.wait_for_role(&[Role::Live], patience)?;
    let events = backup.process.standard_error().map(timeline::read).unwrap_or_default();
    // The last pairing is what came before.
    let first =
        events.iter().rposition(|event| event.text.starts_with("paired")).map_or(0, |index| index + 1);
    let began = events.get(first).map(|event| event.at);
    let since = |at| began.and_then(|began| SystemTime::duration_since(&at, began).ok());
    Ok(events[first..]
        .iter()
        .map(|event| Event {
            ms: since(event.at).unwrap_or_default().as_secs_f64() * 1e3,
            text: event.text.clone(),
        })
        .collect())
}
