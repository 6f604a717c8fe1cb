//! Telling what happens.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::timeline;

/// Log lines told of one take-over at most.
const MOST: usize = 12;

pub(super) struct Story<'a>(&'a mut dyn Write);

impl<'a> Story<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self(out)
    }

    pub(super) fn line(&mut self, text: &str) -> anyhow::Result<()> {
        writeln!(self.0, "{text}")?;
        Ok(self.0.flush()?)
    }

    pub(super) fn at(&mut self, time: Duration, text: &str) -> anyhow::Result<()> {
        self.line(&format!("   +{:.3} s  {text}", time.as_secs_f64()))
    }
}

/// What the surviving side logged since, and how long after.
pub(super) fn after(log: Option<&Path>, since: SystemTime) -> Vec<(Duration, String)> {
    let events = log.map(timeline::read).unwrap_or_default();
    events
        .into_iter()
        .filter(|event| ["INFO", "WARN", "ERROR"].contains(&event.level.as_str()))
        .filter_map(|event| Some((event.at.duration_since(since).ok()?, format!("backup: {}", event.text))))
        .take(MOST)
        .collect()
}
