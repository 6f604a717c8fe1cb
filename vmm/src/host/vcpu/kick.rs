//! Interrupting the guest from time to time.
//!
//! A POSIX timer sends the vCPU thread a signal every half bound. In the guest this is an exit back to
//! the run loop, which then can make a forced stop; elsewhere it does nothing. The handler also asks
//! for an immediate exit, so that a signal just before the entry is not lost.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use kvm_bindings::kvm_run;

thread_local! {
    /// The run area of the vCPU that this thread runs.
    static RUN_AREA: AtomicPtr<kvm_run> = const { AtomicPtr::new(ptr::null_mut()) };
    /// This thread's timer and its period.
    static TIMER: Cell<Option<(libc::timer_t, Duration)>> = const { Cell::new(None) };
}

fn signal_number() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int) {
    // A constant-initialised thread local of a type without destructor is plain memory: safe to use in
    // a signal handler.
    RUN_AREA.with(|area| {
        let run = area.load(Ordering::Relaxed);
        if !run.is_null() {
            // SAFETY: `Kicker` keeps the pointer only as long as the vCPU lives, on this very thread.
            unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
        }
    });
}

fn install_handler() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is a valid one; the handler is async-signal-safe.
        result = unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = on_kick as *const () as usize;
            if libc::sigaction(signal_number(), &raw const action, ptr::null_mut()) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        };
    });
    result
}

/// Kicks the thread that made it, periodically, until dropped. Not `Send`: drop it on the same thread.
#[derive(Debug)]
pub struct Kicker {
    timer: libc::timer_t,
}

impl Kicker {
    /// Kicks this thread out of the guest every `period`. `run` is the vCPU's run area and must outlive
    /// the kicker.
    ///
    /// # Errors
    /// When the kernel has no timer left.
    pub fn start(run: *mut kvm_run, period: Duration) -> io::Result<Self> {
        install_handler()?;
        RUN_AREA.with(|area| area.store(run, Ordering::Relaxed));
        // SAFETY: plain structures of integers; all pointers are valid for the calls.
        unsafe {
            let mut event: libc::sigevent = MaybeUninit::zeroed().assume_init();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal_number();
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer = ptr::null_mut();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) != 0 {
                return Err(io::Error::last_os_error());
            }
            let kicker = Self { timer };
            set_period(timer, period)?;
            TIMER.set(Some((timer, period)));
            Ok(kicker)
        }
    }
}

/// Sets a timer off every `period`, from now on; zero: never.
fn set_period(timer: libc::timer_t, period: Duration) -> io::Result<()> {
    let every = libc::timespec {
        tv_sec: period.as_secs() as libc::time_t,
        tv_nsec: i64::from(period.subsec_nanos()),
    };
    let setting = libc::itimerspec { it_interval: every, it_value: every };
    // SAFETY: the timer is there as long as its `Kicker`, and the structure is valid for the call.
    match unsafe { libc::timer_settime(timer, 0, &raw const setting, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `sleep`, in which the guest does not compute, without this thread's kicks: each would wake it. The next one comes a
/// whole period later.
pub fn without_kicks(sleep: impl FnOnce()) {
    let Some((timer, period)) = TIMER.get() else { return sleep() };
    // A valid timer and a valid time: the kernel has nothing to refuse.
    let _ = set_period(timer, Duration::ZERO);
    sleep();
    let _ = set_period(timer, period);
    RUN_AREA.with(|area| {
        let run = area.load(Ordering::Relaxed);
        if !run.is_null() {
            // SAFETY: as in `on_kick`. A kick of before is void: the guest has just been outside.
            unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(0) };
        }
    });
}

impl Drop for Kicker {
    fn drop(&mut self) {
        TIMER.set(None);
        // SAFETY: the timer was made by `start` and is deleted once.
        unsafe { libc::timer_delete(self.timer) };
        RUN_AREA.with(|area| area.store(ptr::null_mut(), Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_without_kicks_has_none_and_they_go_on_behind_it() {
        let mut run = Box::new(kvm_run::default());
        let area: *mut kvm_run = &raw mut *run;
        let flag: *mut u8 = &raw mut run.immediate_exit;
        // SAFETY: the box lives until the end of the test.
        let kicked = || unsafe { flag.read_volatile() == 1 };
        let _kicker = Kicker::start(area, Duration::from_millis(2)).unwrap();
        let nap = Duration::from_millis(30);
        let slept = std::time::Instant::now();
        without_kicks(|| {
            // SAFETY: as above.
            unsafe { flag.write_volatile(0) };
            // A kick would end a sleep of the kernel's, of which `std::thread::sleep` begins another.
            std::thread::sleep(nap);
            assert!(!kicked());
        });
        assert!(slept.elapsed() >= nap && !kicked());
        while !kicked() && slept.elapsed() < Duration::from_secs(5) {
            std::hint::spin_loop();
        }
        assert!(kicked());
    }

    #[test]
    fn a_kick_asks_for_an_immediate_exit_and_stops_with_the_kicker() {
        let mut run = Box::new(kvm_run::default());
        let area: *mut kvm_run = &raw mut *run;
        let kicker = Kicker::start(area, Duration::from_millis(2)).unwrap();
        let flag: *mut u8 = &raw mut run.immediate_exit;
        // SAFETY: the box lives until the end of the test.
        let kicked = || unsafe { flag.read_volatile() == 1 };
        let start = std::time::Instant::now();
        while !kicked() && start.elapsed() < Duration::from_secs(5) {
            std::hint::spin_loop();
        }
        assert!(kicked());
        drop(kicker);
        // SAFETY: as above.
        unsafe { flag.write_volatile(0) };
        std::thread::sleep(Duration::from_millis(10));
        assert!(!kicked());
    }
}
