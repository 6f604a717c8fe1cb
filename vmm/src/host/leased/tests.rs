use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{LeaseEnd, in_one_step, restartable};

#[test]
fn a_call_is_made_while_the_lease_holds_and_not_after() {
    let mut file = tempfile::tempfile().unwrap();
    let lease = LeaseEnd::past();
    assert!(lease.holds().is_none() && lease.write(file.as_fd(), b"early").is_none());
    lease.set(u64::MAX);
    let made = lease.write(file.as_fd(), b"one two").unwrap();
    assert_eq!(made.result.unwrap(), 7);
    assert!(made.at <= lease.holds().unwrap());
    assert_eq!(lease.write_at(file.as_fd(), b"TWO", 4).unwrap().result.unwrap(), 3);
    lease.set(made.at);
    assert!(
        lease.write(file.as_fd(), b"late").is_none() && lease.write_at(file.as_fd(), b"late", 0).is_none()
    );
    let mut all = String::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_string(&mut all).unwrap();
    assert_eq!(all, "one TWO");

    lease.set(u64::MAX);
    let refused = lease.write(File::open("/dev/null").unwrap().as_fd(), b"x").unwrap().result.unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
}

static MAY: AtomicBool = AtomicBool::new(false);
static DONE: AtomicBool = AtomicBool::new(false);
static EVENTS: AtomicI32 = AtomicI32::new(-1);
static ENDED: AtomicU64 = AtomicU64::new(0);

/// What was written so far is taken out; anything found there later was written after the end.
extern "C" fn end(_: libc::c_int) {
    MAY.store(false, Ordering::SeqCst);
    ENDED.fetch_add(1, Ordering::SeqCst);
    let mut count = 0u64;
    // SAFETY: reads eight bytes of an event counter, which a signal handler may.
    unsafe { libc::read(EVENTS.load(Ordering::SeqCst), (&raw mut count).cast(), 8) };
}

/// The right ends between any two instructions of the thread that writes, most of which are those behind its look. With a plain
/// system call behind the look, there are some hundred writes after the end a second.
#[test]
fn nothing_is_written_after_the_end_wherever_the_thread_was_interrupted() {
    if !in_one_step() {
        println!("skipped: this kernel or this C library has no restartable sequences");
        return;
    }
    // SAFETY: makes a descriptor that nobody else has.
    let mut events = unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)) };
    EVENTS.store(events.as_raw_fd(), Ordering::SeqCst);
    // SAFETY: the handler is one that a signal may run.
    unsafe { libc::signal(libc::SIGUSR2, end as *const () as libc::sighandler_t) };
    let writer = std::thread::spawn(move || {
        let one = 1u64.to_ne_bytes();
        let call =
            [libc::SYS_write as u64, events.as_raw_fd() as u64, one.as_ptr().addr() as u64, 8, 0, 0, 0];
        let look = || {
            let may = MAY.load(Ordering::SeqCst);
            for _ in 0..500 {
                std::hint::spin_loop();
            }
            may.then_some(())
        };
        let (mut written, mut late) = (0u64, 0u64);
        while !DONE.load(Ordering::SeqCst) {
            MAY.store(true, Ordering::SeqCst);
            // SAFETY: eight bytes that are there, to an event counter.
            while let Some(((), done)) = unsafe { restartable::call(&call, look) } {
                assert_eq!(done, 8);
                written += 1;
                if DONE.load(Ordering::SeqCst) {
                    return (written, late);
                }
            }
            late += u64::from(events.read(&mut [0; 8]).is_ok());
        }
        (written, late)
    });
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        let ended = ENDED.load(Ordering::SeqCst);
        // SAFETY: the thread has not been joined.
        assert_eq!(unsafe { libc::pthread_kill(writer.as_pthread_t(), libc::SIGUSR2) }, 0);
        while ENDED.load(Ordering::SeqCst) == ended && Instant::now() < until {
            std::thread::yield_now();
        }
        // At another instruction each time.
        for _ in 0..ended * 7919 % 1000 {
            std::hint::spin_loop();
        }
    }
    DONE.store(true, Ordering::SeqCst);
    let (written, late) = writer.join().unwrap();
    let ended = ENDED.load(Ordering::SeqCst);
    println!("{ended} interruptions, {written} written, {late} after the end");
    assert!(ended > 10 && written > 0);
    assert_eq!(late, 0);
}
