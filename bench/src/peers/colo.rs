//! QEMU's COLO as a pair, set up by its documentation (docs/COLO-FT.txt, docs/colo-proxy.txt, docs/block-replication.txt):
//! quorum and replication under the disk, filters and a packet comparer under the card, then a migration that does not end.
//!
//! What is compared is within QEMU: the same machine on the same KVM, which does its work alone and in the pair. Both of the
//! pair run here: in software emulation, on one CPU.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use tandem_tests::config::run_directory;
use tandem_tests::lab::{BACKUP, Host, Lab, PRIMARY, TAP, guest_mac};
use tandem_tests::process::{Launch, Process};

use super::qmp::Qmp;
use crate::paper::config::{HIDDEN, MEMORY, Orders, without_clocks};
use crate::paper::machine::{Sources, copy_disk};
use crate::report::Peer;
use crate::report::host::qemu_version;

/// For QEMU to start, for state to be copied, for a checkpoint: in software emulation too.
const PATIENCE: Duration = Duration::from_secs(40);
/// Milliseconds from one checkpoint to the next if the outputs do not differ before.
const CHECKPOINT_DELAY: u64 = 2000;

/// Which machine a command line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Alone,
    Primary,
    Secondary,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Alone => "colo-alone",
            Self::Primary => "colo-primary",
            Self::Secondary => "colo-secondary",
        }
    }

    const fn host(self) -> Host {
        match self {
            Self::Alone | Self::Primary => Host::Primary,
            Self::Secondary => Host::Backup,
        }
    }
}

/// Measures one boot with one compilation each way, for which it has `limit`; or finds the step that cannot be done.
pub(super) fn measure(sources: &Sources, cmdline: &str, limit: Duration) -> Peer {
    let version = qemu_version().unwrap_or_else(|| "no QEMU".to_owned());
    let mut figures = BTreeMap::new();
    let reason = all(sources, cmdline, limit, &mut figures).err().map(|error| format!("{error:#}"));
    Peer { name: "qemu-colo".to_owned(), version, figures, reason }
}

fn all(sources: &Sources, cmdline: &str, limit: Duration, figures: &mut BTreeMap<String, f64>) -> Result<()> {
    let directory = run_directory("colo")?;
    let outcome = Lab::new().and_then(|lab| turns(sources, cmdline, &lab, &directory, limit, figures));
    let _ = fs::remove_dir_all(&directory);
    outcome
}

fn turns(
    sources: &Sources,
    cmdline: &str,
    lab: &Lab,
    directory: &Path,
    limit: Duration,
    figures: &mut BTreeMap<String, f64>,
) -> Result<()> {
    // It has PCI, and a reset as of a PC.
    let cmdline = without_clocks(cmdline);
    let words = cmdline.split_whitespace().filter(|word| !word.starts_with("pci="));
    let orders = Orders { batch: Some("tandem.do=compile:1".to_owned()), serve: false };
    let cmdline = orders.cmdline(&words.collect::<Vec<_>>().join(" "));
    fs::copy(&sources.kernel, directory.join("kernel")).context("cannot copy the kernel")?;
    let begin = |part: Part| -> Result<Process> {
        copy_disk(&sources.data, &directory.join(format!("{}.raw", part.name())))?;
        Launch::new(part.name(), Path::new("qemu-system-x86_64"))
            .args(arguments(part, &sources.root, directory, &cmdline))
            .inside(lab.host(part.host()))
            .output(directory)?
            .start()
    };
    // The pair first: where it cannot be set up, no time is lost on the other.
    let size = File::open(&sources.data)?.seek(SeekFrom::End(0))?;
    for name in ["active", "hidden"] {
        create_overlay(&directory.join(format!("{name}.qcow2")), size)?;
    }
    let began = Instant::now();
    let mut pair = [begin(Part::Primary)?, begin(Part::Secondary)?];
    let outcome = protect(directory).and_then(|mut primary| watch(&mut primary, directory, limit, &mut pair));
    let (checkpoints, stopped) = outcome.map_err(|error| {
        let words: Vec<_> = pair.iter().map(|process| process.last_words(2)).collect();
        anyhow!("{error:#}; the pair's last words: {}", words.join("; ").replace('\n', " "))
    })?;
    let took = began.elapsed().as_secs_f64();
    drop(pair);

    let began = Instant::now();
    let mut alone = begin(Part::Alone)?;
    while !has_ended(directory, Part::Alone) {
        must_run(&mut alone)?;
        ensure!(began.elapsed() < limit, "QEMU alone was not done in {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let took_alone = began.elapsed().as_secs_f64();
    drop(alone);
    figures.insert("protected_over_unprotected".to_owned(), took_alone / took);
    figures.insert("checkpoints_per_s".to_owned(), checkpoints as f64 / took);
    figures.insert("stopped_share".to_owned(), stopped.as_secs_f64() / took);
    Ok(())
}

/// Makes a pair of the two machines: the primary's side of it.
fn protect(directory: &Path) -> Result<Qmp> {
    let socket = |part: Part| directory.join(format!("{}.qmp", part.name()));
    let mut secondary = Qmp::connect("secondary", &socket(Part::Secondary), PATIENCE)?;
    let mut primary = Qmp::connect("primary", &socket(Part::Primary), PATIENCE)?;
    let colo = json!({ "capabilities": [{ "capability": "x-colo", "state": true }] });
    let nbd = json!({ "addr": { "type": "inet", "data": { "host": BACKUP.to_string(), "port": "9999" } } });
    secondary.ask("nbd-server-start", &nbd)?;
    secondary.ask("nbd-server-add", &json!({ "device": "parent0", "writable": true }))?;
    secondary.ask("migrate-set-capabilities", &colo)?;
    primary.monitor(&format!(
        "drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,file.host={BACKUP},file.port=9999,\
         file.export=parent0,node-name=replication0"
    ))?;
    primary.ask("x-blockdev-change", &json!({ "parent": "colo-disk0", "node": "replication0" }))?;
    primary.ask("migrate-set-capabilities", &colo)?;
    primary.ask("migrate-set-parameters", &json!({ "x-checkpoint-delay": CHECKPOINT_DELAY }))?;
    primary.ask("migrate", &json!({ "uri": format!("tcp:{BACKUP}:9998") }))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = primary.ask("query-migrate", &json!({}))?;
        match told["status"].as_str().unwrap_or_default() {
            "colo" => return Ok(primary),
            status @ ("completed" | "failed" | "cancelled") => {
                let secondary: Value = secondary.ask("query-colo-status", &json!({})).unwrap_or_default();
                let why = told["error-desc"].as_str().map_or_else(String::new, |why| format!(" ({why})"));
                bail!(
                    "with x-colo on, migrate ended as \"{status}\" in place of \"colo\"{why}; the secondary's COLO: {secondary}"
                )
            }
            status => {
                ensure!(Instant::now() < deadline, "migrate was still \"{status}\" after {PATIENCE:?}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Watches the primary until its work is done: checkpoints, and for how long they stopped it.
fn watch(
    primary: &mut Qmp,
    directory: &Path,
    limit: Duration,
    pair: &mut [Process; 2],
) -> Result<(u64, Duration)> {
    let (began, mut checkpoints, mut stopped) = (Instant::now(), 0, Duration::ZERO);
    let mut since = None;
    loop {
        match primary.event(Duration::from_millis(100))?.as_deref() {
            Some("STOP") => {
                checkpoints += 1;
                since = Some(Instant::now());
            }
            Some("RESUME") => stopped += since.take().map_or(Duration::ZERO, |at: Instant| at.elapsed()),
            Some("COLO_EXIT") => bail!("the primary left COLO after {checkpoints} checkpoints"),
            Some(_) | None => {}
        }
        if has_ended(directory, Part::Primary) {
            return Ok((checkpoints, stopped));
        }
        for process in pair.iter_mut() {
            must_run(process)?;
        }
        if since.is_some_and(|at| at.elapsed() > PATIENCE) {
            bail!("the primary stopped for checkpoint {checkpoints} and did not go on within {PATIENCE:?}");
        }
        ensure!(began.elapsed() < limit, "not done in {limit:?}, after {checkpoints} checkpoints");
    }
}

fn has_ended(directory: &Path, part: Part) -> bool {
    let said = fs::read(directory.join(format!("{}.serial", part.name()))).unwrap_or_default();
    String::from_utf8_lossy(&said).contains("TANDEM-BENCH-END compile")
}

fn must_run(process: &mut Process) -> Result<()> {
    match process.ended() {
        Some(status) => {
            bail!("QEMU ({}) ended ({status}): {}", process.name(), process.last_words(3).replace('\n', " "))
        }
        None => Ok(()),
    }
}

fn create_overlay(path: &Path, size: u64) -> Result<()> {
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg(size.to_string())
        .output()
        .context("cannot run qemu-img: install qemu-utils")?;
    ensure!(output.status.success(), "qemu-img: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn arguments(part: Part, root: &Path, directory: &Path, cmdline: &str) -> Vec<OsString> {
    let name = part.name();
    let file = |name: &str| directory.join(name).display().to_string();
    let mut words: Vec<String> = format!(
        "-name {name} -accel kvm -cpu host{HIDDEN} -M pc,kernel-irqchip=off,acpi=off -m {MEMORY} -nodefaults -no-user-config \
         -no-reboot -display none -serial file:{} -qmp unix:{},server=on,wait=off -kernel {}",
        file(&format!("{name}.serial")),
        file(&format!("{name}.qmp")),
        file("kernel"),
    )
    .split_whitespace()
    .map(str::to_owned)
    .collect();
    words.extend(["-append".to_owned(), cmdline.to_owned()]);
    let mut add = |text: &str| words.extend(text.split_whitespace().map(str::to_owned));
    add(&format!(
        "-netdev tap,id=hn0,ifname={TAP},script=no,downscript=no,vhost=off \
         -device virtio-net-pci,id=e0,netdev=hn0,mac={} \
         -drive if=none,id=root,format=raw,readonly=on,file={} -device virtio-blk-pci,drive=root",
        guest_mac(),
        root.display()
    ));
    let data = file(&format!("{name}.raw"));
    match part {
        Part::Alone => add(&format!("-drive if=none,id=colo-disk0,format=raw,file={data}")),
        Part::Primary => {
            let chardev = |id: &str, host: &str, port: u16, more: &str| {
                format!("-chardev socket,id={id},host={host},port={port}{more} ")
            };
            let (server, local, outside) = (",server=on,wait=off", "127.0.0.1", PRIMARY.to_string());
            add(&[
                chardev("mirror0", &outside, 9003, server),
                chardev("compare1", &outside, 9004, ",server=on,wait=on"),
                chardev("compare0", local, 9001, server),
                chardev("compare0-0", local, 9001, ""),
                chardev("compare_out", local, 9005, server),
                chardev("compare_out0", local, 9005, ""),
            ]
            .concat());
            add("-object filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0,vnet_hdr_support=on \
                 -object filter-redirector,id=redire0,netdev=hn0,queue=rx,indev=compare_out,vnet_hdr_support=on \
                 -object filter-redirector,id=redire1,netdev=hn0,queue=rx,outdev=compare0,vnet_hdr_support=on \
                 -object iothread,id=iothread1 \
                 -object colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,outdev=compare_out0,\
                 iothread=iothread1,vnet_hdr_support=on -S");
            add(&format!(
                "-drive if=none,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,\
                 children.0.file.filename={data},children.0.driver=raw"
            ));
        }
        Part::Secondary => {
            for (id, port) in [("red0", 9003), ("red1", 9004)] {
                add(&format!("-chardev socket,id={id},host={PRIMARY},port={port},reconnect-ms=1000"));
            }
            add("-object filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0,vnet_hdr_support=on \
                 -object filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1,vnet_hdr_support=on \
                 -object filter-rewriter,id=rew0,netdev=hn0,queue=all,vnet_hdr_support=on");
            add(&format!(
                "-drive if=none,id=parent0,file.filename={data},driver=raw \
                 -drive if=none,id=childs0,driver=replication,mode=secondary,top-id=colo-disk0,file.driver=qcow2,\
                 file.file.filename={},file.backing.driver=qcow2,file.backing.file.filename={},file.backing.backing=parent0 \
                 -drive if=none,id=colo-disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,children.0=childs0 \
                 -incoming tcp:{BACKUP}:9998",
                file("active.qcow2"),
                file("hidden.qcow2"),
            ));
        }
    }
    add("-device virtio-blk-pci,drive=colo-disk0");
    words.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(part: Part) -> String {
        let args = arguments(part, Path::new("/root.ext4"), Path::new("/run/1"), "quiet root=/dev/vda");
        args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn each_side_has_its_filters_and_its_disks() {
        let (primary, secondary) = (line(Part::Primary), line(Part::Secondary));
        for part in [
            "secondary_in=compare1,outdev=compare_out0,iothread=iothread1,vnet_hdr_support=on",
            "children.0.file.filename=/run/1/colo-primary.raw,children.0.driver=raw",
            "socket,id=mirror0,host=10.99.0.1,port=9003,server=on,wait=off",
            "-S",
        ] {
            assert!(primary.contains(part), "{part}: {primary}");
        }
        for part in [
            "mode=secondary,top-id=colo-disk0",
            "file.backing.file.filename=/run/1/hidden.qcow2,file.backing.backing=parent0",
            "tcp:10.99.0.2:9998",
        ] {
            assert!(secondary.contains(part), "{part}: {secondary}");
        }
        assert!(!line(Part::Alone).contains("quorum") && !line(Part::Alone).contains("filter"));
    }

    #[test]
    fn all_have_the_same_card_and_the_disks_in_the_same_order() {
        for part in [Part::Alone, Part::Primary, Part::Secondary] {
            let line = line(part);
            assert!(line.contains(&guest_mac()) && line.contains("quiet root=/dev/vda"));
            assert!(line.find("drive=root") < line.find("drive=colo-disk0"), "{line}");
        }
    }
}
