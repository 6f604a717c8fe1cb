//! The exit histograms, by ioctl and in debugfs.

use anyhow::{Context, Result, ensure};
use kvm_ioctls::Kvm;

use super::guest;
use super::trials::recorder;
use super::vm::Ring;

pub(super) fn histograms(system: &Kvm) -> Result<()> {
    let mut vm = recorder(system, 1024)?;
    vm.capture()?.set_tracing(true)?;
    vm.start(guest::rdtsc(), Ring::Kernel, 300, 0)?;
    vm.finish()?;
    let kinds = vm.capture()?.histograms()?;
    // SVM exit code 0x6e, VMX reason 16.
    let tsc =
        kinds.iter().find(|kind| [0x6e, 16].contains(&kind.reason)).context("no RDTSC in the histograms")?;
    ensure!(tsc.count >= 299, "{} counted", tsc.count);
    ensure!(tsc.buckets.iter().sum::<u64>() == tsc.count && tsc.cycles > 0, "buckets do not add up");
    let shown = traces()?;
    let line = format!("{tsc}\n");
    ensure!(shown.len() == 1 && shown[0].contains(&line), "debugfs shows {shown:?}, without {line:?}");
    vm.capture()?.set_tracing(false)?;
    let before = vm.capture()?.histograms()?;
    vm.start(guest::rdtsc(), Ring::Kernel, 300, 0)?;
    vm.finish()?;
    ensure!(vm.capture()?.histograms()? == before, "counted though tracing was off");
    drop(vm);
    let left = traces()?;
    ensure!(left.is_empty(), "debugfs still shows {left:?}");
    Ok(())
}

/// What debugfs shows of this process's vCPUs.
fn traces() -> Result<Vec<String>> {
    let ours = format!("{}-", std::process::id());
    let mut shown = Vec::new();
    for entry in std::fs::read_dir("/sys/kernel/debug/tandem").context("/sys/kernel/debug/tandem")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&ours) {
            shown.push(std::fs::read_to_string(entry.path())?);
        }
    }
    Ok(shown)
}
