//! Telling what happens.

use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::timeline;

/// Log lines told of one take-over at most.
const MOST: usize = 12;

/// A step that goes on for longer says so each time.
const STILL: Duration = Duration::from_secs(10);

/// Where it is told. Clones tell to the same place.
#[derive(Clone)]
pub struct Story {
    out: Arc<Mutex<dyn Write + Send>>,
    began: Instant,
    slow: bool,
}

impl std::fmt::Debug for Story {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Story").field("slow", &self.slow).finish_non_exhaustive()
    }
}

impl Story {
    /// Tells on `out`. Where things are slow, each step is announced, and a long one says that it goes on.
    pub fn new(out: impl Write + Send + 'static, slow: bool) -> Self {
        Self { out: Arc::new(Mutex::new(out)), began: Instant::now(), slow }
    }

    /// Tells one line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn line(&self, text: &str) -> anyhow::Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(out, "{text}")?;
        Ok(out.flush()?)
    }

    pub(super) fn at(&self, time: Duration, text: &str) -> anyhow::Result<()> {
        self.line(&format!("   +{:.3} s  {text}", time.as_secs_f64()))
    }

    /// A step begins; it lasts until the result is dropped.
    pub(super) fn step(&self, what: &str) -> anyhow::Result<Step> {
        if !self.slow {
            return Ok(Step { ended: None, thread: None });
        }
        self.since(what)?;
        let (ended, end) = channel::<()>();
        let (story, what, began) = (self.clone(), what.to_owned(), Instant::now());
        let thread = std::thread::Builder::new().name("still".to_owned()).spawn(move || {
            while end.recv_timeout(STILL) == Err(RecvTimeoutError::Timeout) {
                // Whoever cannot be told now will be told why later.
                let _ = story.since(&format!("{what}: {} s so far", began.elapsed().as_secs()));
            }
        })?;
        Ok(Step { ended: Some(ended), thread: Some(thread) })
    }

    fn since(&self, what: &str) -> anyhow::Result<()> {
        self.line(&format!("   [{:>3} s] {what}", self.began.elapsed().as_secs()))
    }
}

/// A step under way.
pub(super) struct Step {
    ended: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Step {
    fn drop(&mut self) {
        drop(self.ended.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
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
