//! One of the two machines: its copies of what VMs are started with, and the files of the one that runs now.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tandem_tests::bed::core;
use tandem_tests::config::{Files, run_directory};
use tandem_tests::lab::{Host, Lab};
use tandem_tests::process::Process;
use tandem_tests::side::Side;

use super::config::NAME;
use super::usage::{Look, cpu_seconds};
use crate::report::spent::Spent;

/// Where what every VM needs is found.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    /// `tandem`.
    pub(crate) tandem: PathBuf,
    /// A bzImage.
    pub(crate) kernel: PathBuf,
    /// The guest's root, a file or a disk of this machine.
    pub(crate) root: PathBuf,
    /// What every VM gets a copy of, a file or a disk of this machine.
    pub(crate) data: PathBuf,
    /// Names and versions of the guest's software.
    pub(crate) packages: PathBuf,
}

/// A VM's config and the pair's key: what both hosts of a pair have in common.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    /// `vm.toml`.
    pub(crate) config: String,
    /// 64 hex digits.
    pub(crate) key: String,
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) directory: PathBuf,
    pub(crate) sources: Sources,
    vms: u32,
}

impl Machine {
    /// Copies what is read often: inside virtme-ng what lies on the host's files is slow to read.
    ///
    /// # Errors
    /// When something cannot be copied.
    pub(crate) fn new(sources: Sources) -> Result<Self> {
        let directory = run_directory("paper")?;
        let machine = Self { directory, sources, vms: 0 };
        let copy = |from: &Path, name: &str| {
            fs::copy(from, machine.directory.join(name))
                .with_context(|| format!("cannot copy {}", from.display()))
        };
        copy(&machine.sources.tandem, "tandem")?;
        copy(&machine.sources.kernel, "kernel")?;
        Ok(machine)
    }

    /// The guest's root: every VM reads it, none writes.
    pub(crate) fn root(&self) -> PathBuf {
        self.sources.root.clone()
    }

    /// The files of a new VM; those of the last one are forgotten.
    ///
    /// # Errors
    /// When they cannot be made.
    pub(crate) fn fresh(&mut self, shared: &Shared) -> Result<Files> {
        let _ = fs::remove_dir_all(self.directory.join(self.vms.to_string()));
        self.vms += 1;
        let directory = self.directory.join(self.vms.to_string());
        fs::create_dir(&directory)?;
        copy_disk(&self.sources.data, &directory.join("data.ext4"))?;
        symlink(self.directory.join("kernel"), directory.join("kernel"))?;
        Files::provide(&directory, NAME, &shared.config, &shared.key)
    }

    /// Starts `tandem` on a host of the lab, each host on a core of its own.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(&self, command: &str, lab: &Lab, host: Host, files: &Files) -> Result<Side> {
        let launch = files.launch(&self.directory.join("tandem"), command, lab, host)?;
        Ok(Side::new(launch.on_core(core(host)).start()?, files.control(host)))
    }
}

/// Copies a file or a disk into a file. What is zero takes no room.
///
/// # Errors
/// When it cannot be read or written.
pub(crate) fn copy_disk(from: &Path, to: &Path) -> Result<()> {
    let copied = || -> io::Result<()> {
        let (mut from, mut to) = (File::open(from)?, File::create(to)?);
        let mut block = vec![0; 1 << 20];
        let mut length = 0;
        loop {
            let read = from.read(&mut block)?;
            if read == 0 {
                return to.set_len(length);
            }
            if block[..read].iter().any(|byte| *byte != 0) {
                to.seek(SeekFrom::Start(length))?;
                to.write_all(&block[..read])?;
            }
            length += read as u64;
        }
    };
    copied().with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What a side says and what it took.
///
/// # Errors
/// When it does not answer or has ended.
pub(crate) fn look(side: &Side, host: Host) -> Result<Look> {
    let spent = Spent::so_far(side.process.pid(), core(host));
    Ok(Look { status: side.status()?, cpu: cpu(&side.process)?, spent })
}

/// CPU seconds of a process so far.
///
/// # Errors
/// When it has ended.
pub(crate) fn cpu(process: &Process) -> Result<f64> {
    let path = format!("/proc/{}/stat", process.pid());
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // SAFETY: takes no pointers.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    match cpu_seconds(&stat, ticks) {
        Some(seconds) => Ok(seconds),
        None => bail!("{path} is not as it should be"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_a_disk_is_as_long_and_has_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut bytes = vec![0; (3 << 20) + 17];
        bytes[(1 << 20) + 5] = 7;
        fs::write(&from, &bytes).unwrap();
        copy_disk(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), bytes);
        assert!(copy_disk(&dir.path().join("none"), &to).is_err());
    }
}
