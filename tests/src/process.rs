//! Processes that we start, freeze, kill, and always end.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::lab::{Namespace, move_this_thread_to};

/// A program about to be started.
#[derive(Debug)]
pub struct Launch {
    name: String,
    command: Command,
    standard_error: Option<PathBuf>,
}

impl Launch {
    /// What runs, and what we call it. Its standard input is empty, its output goes nowhere.
    #[must_use]
    pub fn new(name: &str, program: &Path) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { name: name.to_owned(), command, standard_error: None }
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<A: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it inside a namespace.
    #[must_use]
    pub fn inside(mut self, namespace: &Namespace) -> Self {
        let namespace = namespace.as_raw_fd();
        // SAFETY: between fork and exec it makes one system call and allocates nothing. The descriptor
        // is only borrowed: if the namespace is gone by then, so is the start.
        unsafe { self.command.pre_exec(move || move_this_thread_to(namespace)) };
        self
    }

    /// Lets it run on one core only, if this machine has that core.
    #[must_use]
    pub fn on_core(mut self, core: usize) -> Self {
        if core < cores() {
            // SAFETY: as above: one system call, no allocation.
            unsafe { self.command.pre_exec(move || pin_this_thread(core)) };
        }
        self
    }

    /// Files for its standard output and standard error.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn output(mut self, directory: &Path) -> anyhow::Result<Self> {
        let create = |suffix: &str| {
            let path = directory.join(format!("{}.{suffix}", self.name));
            let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
            anyhow::Ok((path, file))
        };
        let (_, stdout) = create("out")?;
        let (path, stderr) = create("err")?;
        self.command.stdout(stdout).stderr(stderr);
        self.standard_error = Some(path);
        Ok(self)
    }

    /// Starts it. It ends with this process, however this one ends, or with the [`Process`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut self) -> anyhow::Result<Process> {
        // SAFETY: one system call, no allocation.
        unsafe {
            self.command.pre_exec(|| {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let program = self.command.get_program().to_string_lossy().into_owned();
        let child = self.command.spawn().with_context(|| format!("cannot start {program}"))?;
        let pidfd = pidfd(child.id())?;
        Ok(Process { name: self.name, child, pidfd, status: None, standard_error: self.standard_error })
    }
}

/// A process that we started; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
    standard_error: Option<PathBuf>,
}

impl Process {
    /// What we call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its standard error goes.
    #[must_use]
    pub fn standard_error(&self) -> Option<&Path> {
        self.standard_error.as_deref()
    }

    /// Sends a signal; nothing if it has ended.
    pub fn signal(&mut self, signal: libc::c_int) {
        if self.status.is_none() {
            // SAFETY: takes no pointers. The process is not waited for, so that the number is still its.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
    }

    /// SIGSTOP: it stands still, and does not know.
    pub fn freeze(&mut self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.signal(libc::SIGCONT);
    }

    /// SIGKILL. Waits until nothing is left of it.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
    }

    /// SIGTERM, and SIGKILL after `patience`. `true` if the first was enough.
    pub fn terminate(&mut self, patience: Duration) -> bool {
        self.signal(libc::SIGTERM);
        let ended = self.wait(patience).is_some();
        self.kill();
        ended
    }

    /// Waits for its end; `None` if it still runs after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        if self.status.is_none() {
            let mut poll = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let millis = patience.as_millis().min(i32::MAX as u128) as i32;
            // SAFETY: one valid pollfd.
            unsafe { libc::poll(&raw mut poll, 1, millis) };
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.wait(Duration::ZERO)
    }

    /// The last lines of its standard error.
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        let Some(path) = &self.standard_error else { return String::new() };
        let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.unwrap_or_default();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// How many cores this machine has.
#[must_use]
pub fn cores() -> usize {
    // SAFETY: takes no pointers.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// Lets the calling thread run on one core only. It allocates nothing.
///
/// # Errors
/// When there is no such core.
pub fn pin_this_thread(core: usize) -> io::Result<()> {
    // SAFETY: a set of no cores is all zero; the set is valid for its size.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core % libc::CPU_SETSIZE as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if pinned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn sleeper() -> Process {
        Launch::new("sleeper", Path::new("sleep")).args(["60"]).start().unwrap()
    }

    #[test]
    fn a_process_is_frozen_thawed_killed_and_dropped() {
        let mut process = sleeper();
        assert!(process.ended().is_none());
        process.freeze();
        assert!(process.wait(Duration::from_millis(20)).is_none());
        process.kill();
        assert_eq!(process.ended().unwrap().signal(), Some(libc::SIGKILL));
        let mut process = sleeper();
        assert!(process.terminate(Duration::from_secs(5)));
        assert_eq!(process.ended().unwrap().signal(), Some(libc::SIGTERM));
        let process = sleeper();
        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn what_it_said_last_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Launch::new("talker", Path::new("sh"))
            .args(["-c", "echo one >&2; echo two >&2; echo three >&2; exit 7"])
            .output(dir.path())
            .unwrap()
            .start()
            .unwrap();
        assert_eq!(process.wait(Duration::from_secs(5)).and_then(|status| status.code()), Some(7));
        assert_eq!(process.last_words(2), "two\nthree");
    }
}
