//! Running ahead of ordinary threads.

/// Gives the calling thread the lowest real-time priority, so that a busy host does not hold up its
/// heartbeats and acknowledgements. Needs CAP_SYS_NICE; without it, a lower nice value is tried. Says
/// whether the thread got real-time priority.
pub fn run_ahead() -> bool {
    // Threads started from here on must not inherit it.
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    if set_policy(policy, 1) {
        return true;
    }
    // SAFETY: no pointers. A refusal leaves things as they were.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    tracing::debug!("no real-time priority for the side thread: heartbeats may be late on a busy host");
    false
}

/// Work of a thread in which nobody whom it wakes may interrupt it: a client that got the first of many replies would run before
/// the others have theirs, and ask again by itself instead of together with them. Real-time priority for as long as it
/// takes, where the thread may have it.
#[derive(Debug)]
pub struct Burst {
    refused: bool,
    under_way: bool,
}

impl Burst {
    /// Nothing is under way. For the calling thread, which must be an ordinary one.
    #[must_use]
    pub const fn new() -> Self {
        Self { refused: false, under_way: false }
    }

    /// From now on; if it is not so already.
    pub fn begin(&mut self) {
        if !self.under_way && !self.refused {
            self.under_way = set_policy(libc::SCHED_FIFO, 1);
            self.refused = !self.under_way;
        }
    }

    /// Until now.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.under_way) {
            set_policy(libc::SCHED_OTHER, 0);
        }
    }
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

fn set_policy(policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the structure is valid for the call; 0 means this thread.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_ends_as_an_ordinary_thread() {
        // SAFETY: no pointers; 0 means this thread.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let mut burst = Burst::new();
        burst.begin();
        burst.begin();
        if policy() != libc::SCHED_FIFO {
            println!("skipped: this process may not have real-time priority");
        }
        burst.end();
        assert_eq!(policy(), libc::SCHED_OTHER);
        burst.end();
        assert_eq!(policy(), libc::SCHED_OTHER);
    }
}
