//! Asking the arbiter, on a thread of its own: storage may hang.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{SystemTime, UNIX_EPOCH};

use tandem_arbiter::{Arbiter, Claim, Side, Token, Verdict as Answer, VmId};

use super::PairError;
use crate::role::event::Verdict;

/// The way to the arbiter.
#[derive(Debug)]
pub(super) struct Claims {
    path: PathBuf,
    vm: VmId,
    side: Side,
    token: Token,
    answers: Receiver<(u64, Verdict)>,
    sender: Sender<(u64, Verdict)>,
}

impl Claims {
    /// Opens the arbiter once, to see that it is this VM's; the latest generation that was claimed.
    ///
    /// # Errors
    /// When it cannot be used, or is another VM's.
    pub(super) fn open(path: PathBuf, vm: VmId, side: Side, token: Token) -> Result<(Self, u64), PairError> {
        let failed = |source| PairError::Arbiter { path: path.clone(), source };
        let mut arbiter = Arbiter::open(&path).map_err(failed)?;
        if arbiter.vm() != vm {
            return Err(PairError::OtherVm { path, found: arbiter.vm(), expected: vm });
        }
        if let Some(notice) = arbiter.notice() {
            tracing::info!(%notice, "the arbiter");
        }
        let claims = arbiter.show().map_err(failed)?.claims;
        let claimed = claims.iter().map(|claim| claim.generation).max().unwrap_or(0);
        let (sender, answers) = channel();
        Ok((Self { path, vm, side, token, answers, sender }, claimed))
    }

    /// Asks for a generation; the answer comes by [`Claims::answer`], and `wake` is called for it.
    pub(super) fn ask(&self, generation: u64, wake: impl FnOnce() + Send + 'static) {
        let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let claim = Claim { vm: self.vm, generation, side: self.side, token: self.token, time_ms };
        let (path, sender) = (self.path.clone(), self.sender.clone());
        let thread = std::thread::Builder::new().name("tandem-arbiter".to_owned()).spawn(move || {
            let verdict = ask(&path, &claim);
            // The side thread may have ended meanwhile.
            let _ = sender.send((generation, verdict));
            wake();
        });
        if let Err(error) = thread {
            tracing::error!(%error, "no thread for the arbiter");
            let _ = self.sender.send((generation, Verdict::Unreachable));
        }
    }

    /// An answer, if one came.
    pub(super) fn answer(&self) -> Option<(u64, Verdict)> {
        self.answers.try_recv().ok()
    }
}

/// Opens anew each time: the storage may have been away.
fn ask(path: &std::path::Path, claim: &Claim) -> Verdict {
    let verdict = Arbiter::open(path).and_then(|mut arbiter| {
        loop {
            match arbiter.claim(claim)? {
                Answer::Contended { retry_after } => std::thread::sleep(retry_after),
                verdict => return Ok(verdict),
            }
        }
    });
    match verdict {
        Ok(Answer::Won) => Verdict::Won,
        Ok(_) => Verdict::Lost,
        Err(error) => {
            tracing::warn!(error = %chain(&error), generation = claim.generation, "the arbiter cannot be asked");
            Verdict::Unreachable
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
