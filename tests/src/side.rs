//! A running side, seen through its process and its control socket.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tandem_vmm::host::control::{Client, Role, Status};

use crate::process::Process;

/// Between two looks at a status: at first, and when it takes long already. The machine has other things to do.
const LOOKS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];

/// One `tandem run`, `primary` or `backup`.
#[derive(Debug)]
pub struct Side {
    /// Its process.
    pub process: Process,
    control: PathBuf,
    frozen: bool,
}

impl Side {
    /// A process and where it is asked.
    #[must_use]
    pub fn new(process: Process, control: &Path) -> Self {
        Self { process, control: control.to_owned(), frozen: false }
    }

    /// Asks for its status.
    ///
    /// # Errors
    /// When it is frozen, has ended, or does not answer.
    pub fn status(&self) -> anyhow::Result<Status> {
        if self.frozen {
            bail!("the {} is frozen", self.process.name());
        }
        Ok(Client::connect(&self.control)?.status()?)
    }

    /// Asks it to hand over. What it says will happen.
    ///
    /// # Errors
    /// When it refuses or does not answer.
    pub fn failover(&self) -> anyhow::Result<String> {
        Ok(Client::connect(&self.control)?.failover()?)
    }

    /// SIGSTOP.
    pub fn freeze(&mut self) {
        self.frozen = true;
        self.process.freeze();
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.process.thaw();
        self.frozen = false;
    }

    /// How it is, in a few words.
    #[must_use]
    pub fn state(&mut self) -> String {
        let name = self.process.name().to_owned();
        if let Some(ended) = self.process.ended() {
            return format!("the {name} has ended ({ended})");
        }
        match self.status() {
            Err(error) => format!("the {name} does not tell: {error:#}"),
            Ok(status) => {
                let lag = status.lag.unwrap_or_default();
                format!(
                    "the {name} is {} after {:.1} s of guest time, {} exits and {} forced stops, \
                     lag {:.0} ms and {} entries, {} outputs held",
                    status.role.name(),
                    status.guest_time_ns as f64 / 1e9,
                    status.exits.values().sum::<u64>(),
                    status.forced_stops,
                    lag.ms,
                    lag.entries,
                    status.held_outputs
                )
            }
        }
    }

    /// What it is, if it says so.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        self.status().ok().map(|status| status.role)
    }

    /// Whether it runs the VM: as the primary of a pair, or alone after the other side was lost.
    #[must_use]
    pub fn runs_the_vm(&mut self) -> bool {
        self.process.ended().is_none() && matches!(self.role(), Some(Role::Primary | Role::Live | Role::Solo))
    }

    /// Whether it has stopped for good.
    #[must_use]
    pub fn has_stopped(&mut self) -> bool {
        self.process.ended().is_some() || self.role() == Some(Role::Halted)
    }

    /// Checks that its process has not ended.
    ///
    /// # Errors
    /// When it has; its last words say why.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        let Some(ended) = self.process.ended() else { return Ok(()) };
        bail!("the {} ended ({ended}); its last words:\n{}", self.process.name(), self.process.last_words(10))
    }

    /// Waits until it has one of these roles.
    ///
    /// # Errors
    /// When it has none of them within `patience`, or ends.
    pub fn wait_for_role(&mut self, roles: &[Role], patience: Duration) -> anyhow::Result<Status> {
        let began = Instant::now();
        let deadline = began + patience;
        loop {
            let status = self.status();
            if let Ok(status) = &status
                && roles.contains(&status.role)
            {
                return Ok(status.clone());
            }
            self.must_run()?;
            let (name, last) = (self.process.name(), self.process.last_words(10));
            if Instant::now() >= deadline {
                let wanted = roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(" or ");
                let now = match status {
                    Ok(status) => format!("it is {}", status.role.name()),
                    Err(error) => format!("{error:#}"),
                };
                bail!("the {name} did not become {wanted} in {patience:.1?}: {now}; its last words:\n{last}");
            }
            std::thread::sleep((began.elapsed() / 16).clamp(LOOKS[0], LOOKS[1]));
        }
    }

    /// Whether it says anywhere that the two sides differ. They never should.
    #[must_use]
    pub fn divergence(&mut self) -> Option<String> {
        let told = |text: &str| text.to_ascii_lowercase().contains("diverge");
        if self.process.ended().and_then(|status| status.code()) == Some(3) {
            return Some(format!("the {} ended with status 3", self.process.name()));
        }
        if let Some(note) = self.status().ok().and_then(|status| status.note).filter(|note| told(note)) {
            return Some(note);
        }
        let path = self.process.standard_error()?;
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display())).ok()?;
        String::from_utf8_lossy(&text).lines().find(|line| told(line)).map(str::to_owned)
    }
}
