//! One network namespace with a name, as `ip netns` knows it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, bail};

/// Where `ip netns` keeps its names.
pub(super) const NAMES: &str = "/run/netns";

/// A network namespace that is removed when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes an empty one: no device but a loopback that is up, no IPv6 chatter.
    ///
    /// # Errors
    /// Without the right to, or when the name is taken.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        ip(&["netns", "add", name])?;
        let path = Path::new(NAMES).join(name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()));
        let namespace = Self {
            name: name.to_owned(),
            file: file.inspect_err(|_| {
                delete(name);
            })?,
        };
        namespace.enter(silence_ipv6)?;
        namespace.batch("link set lo up\n")?;
        Ok(namespace)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that others can open to enter it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Runs `work` inside, on a thread of its own: sockets made there stay there.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let inside = || -> io::Result<T> {
            move_this_thread_to(self.as_raw_fd())?;
            Ok(work())
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result.with_context(|| format!("cannot enter the namespace {}", self.name)),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs commands of `ip` inside, one a line.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn batch(&self, commands: &str) -> anyhow::Result<()> {
        use std::io::Write;
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ip: install iproute2")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(commands.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip in {}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// Moves the calling thread, and no other, into a namespace. It allocates nothing: also for a child
/// between fork and exec.
///
/// # Errors
/// Without the right to.
pub fn move_this_thread_to(namespace: RawFd) -> io::Result<()> {
    // SAFETY: takes no pointers; a descriptor that is no namespace is an error.
    if unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Router solicitations and the like would reach the guest at times of their own.
fn silence_ipv6() {
    for which in ["all", "default"] {
        // A kernel without IPv6 has no such file.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
    }
}

/// Removes a name. The namespace itself lives on for as long as somebody is inside.
pub(super) fn delete(name: &str) {
    let _ = Command::new("ip")
        .args(["netns", "delete", name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

pub(super) fn ip(args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(args).output().context("cannot run ip: install iproute2")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
