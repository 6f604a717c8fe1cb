//! Running ahead of ordinary threads.

/// Gives the calling thread the lowest real-time priority, so that a busy host does not hold up its
/// heartbeats and acknowledgements. Needs CAP_SYS_NICE; without it, a lower nice value is tried. Says
/// whether the thread got real-time priority.
pub fn run_ahead() -> bool {
    let parameters = libc::sched_param { sched_priority: 1 };
    // Threads started from here on must not inherit it.
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the structure is valid for the call; 0 means this thread.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } == 0 {
        return true;
    }
    // SAFETY: no pointers. A refusal leaves things as they were.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    tracing::debug!("no real-time priority for the side thread: heartbeats may be late on a busy host");
    false
}
