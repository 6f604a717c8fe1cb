//! The public interface on real files, directories and block devices.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tandem_arbiter::{Arbiter, Backend, Claim, Error, InitOptions, Notice, Side, Token, Verdict, VmId};

const VM: VmId = VmId([7; 16]);
const OTHER: VmId = VmId([8; 16]);

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// A path for a disk arbiter and one for a directory arbiter.
fn places(dir: &Path) -> [PathBuf; 2] {
    let links = dir.join("links");
    std::fs::create_dir(&links).expect("a directory");
    [dir.join("disk"), links]
}

fn claim(generation: u64, side: Side, token: u8) -> Claim {
    Claim { vm: VM, generation, side, token: Token([token; 16]), time_ms: 1_700_000_000_000 }
}

fn init(path: &Path) -> Arbiter {
    Arbiter::init(path, VM, &InitOptions::default()).expect("init")
}

fn open(path: &Path) -> Arbiter {
    Arbiter::open(path).expect("opens")
}

fn check_test_and_set(path: &Path) {
    let (winner, loser) = (claim(1, Side::Backup, 1), claim(1, Side::Primary, 2));
    let lost = Verdict::Lost { winner };
    assert_eq!(open(path).claim(&winner).expect("a verdict"), Verdict::Won);
    assert_eq!(open(path).claim(&loser).expect("a verdict"), lost);
    assert_eq!(open(path).claim(&winner).expect("a verdict"), Verdict::Won, "claimed again");
    assert_eq!(open(path).claim(&claim(1, Side::Backup, 3)).expect("a verdict"), lost, "restarted");
    assert_eq!(open(path).show().expect("shows").claims, [winner], "token, side and time are kept");
    assert_eq!(open(path).claim(&claim(2, Side::Primary, 4)).expect("a verdict"), Verdict::Won);
    assert_eq!(open(path).claim(&winner).expect("a verdict"), Verdict::Superseded { by: 2 });
    for generation in 3..=40 {
        assert_eq!(open(path).claim(&claim(generation, Side::Primary, 5)).expect("a verdict"), Verdict::Won);
    }
    let kept: Vec<_> =
        open(path).show().expect("shows").claims.iter().map(|claim| claim.generation).collect();
    assert_eq!(kept, (25..=40).collect::<Vec<_>>());
    assert_eq!(open(path).claim(&winner).expect("a verdict"), Verdict::Superseded { by: 40 });
}

#[test]
fn it_is_a_test_and_set() {
    let dir = scratch();
    for path in places(dir.path()) {
        let arbiter = init(&path);
        assert_eq!(arbiter.vm(), VM);
        println!("{}: notice {:?}", path.display(), arbiter.notice());
        check_test_and_set(&path);
    }
}

#[test]
fn what_is_not_the_vms_arbiter_is_a_clear_error() {
    let dir = scratch();
    for path in places(dir.path()) {
        let error = Arbiter::open(&path).expect_err("nothing there");
        assert!(matches!(error, Error::Missing { .. } | Error::NotInitialised { .. }), "{error}");
        let mut arbiter = init(&path);
        let foreign = Claim { vm: OTHER, ..claim(1, Side::Backup, 1) };
        let error = arbiter.claim(&foreign).expect_err("another VM");
        assert!(matches!(error, Error::WrongVm { found: VM, expected: OTHER, .. }), "{error}");
        assert!(!error.is_transient());
        let error = arbiter.claim(&claim(0, Side::Backup, 1)).expect_err("no such generation");
        assert!(matches!(error, Error::GenerationZero), "{error}");
        assert_eq!(arbiter.show().expect("shows").claims, [], "nothing was claimed");
    }
}

#[test]
fn init_keeps_what_is_there_unless_told() {
    let dir = scratch();
    for path in places(dir.path()) {
        let won = claim(1, Side::Backup, 1);
        assert_eq!(init(&path).claim(&won).expect("a verdict"), Verdict::Won);
        let error = Arbiter::init(&path, OTHER, &InitOptions::default()).expect_err("kept");
        assert!(matches!(error, Error::AlreadyInitialised { vm: VM, .. }), "{error}");
        assert_eq!(open(&path).claim(&won).expect("a verdict"), Verdict::Won);
        let overwrite = InitOptions { overwrite: true, ..InitOptions::default() };
        let mut fresh = Arbiter::init(&path, OTHER, &overwrite).expect("overwrites");
        assert_eq!((fresh.vm(), fresh.show().expect("shows").claims), (OTHER, vec![]));
    }
    let orphan = dir.path().join("links");
    std::fs::remove_file(orphan.join("arbiter")).expect("removes");
    std::fs::write(orphan.join("gen-00000000000000000001"), "?").expect("writes");
    let error = Arbiter::init(&orphan, VM, &InitOptions::default()).expect_err("claims without header");
    assert!(matches!(error, Error::NotEmpty { .. }), "{error}");
}

#[test]
fn storage_that_went_away_is_awaited_and_found_again() {
    let dir = scratch();
    let path = dir.path().join("links");
    std::fs::create_dir(&path).expect("a directory");
    let mut arbiter = init(&path);
    let away = dir.path().join("away");
    std::fs::rename(&path, &away).expect("unmounts, as it were");
    for _ in 0..2 {
        let error = arbiter.claim(&claim(1, Side::Backup, 1)).expect_err("away");
        assert!(error.is_transient(), "{error}");
    }
    std::fs::rename(&away, &path).expect("mounts again");
    assert_eq!(arbiter.claim(&claim(1, Side::Backup, 1)).expect("a verdict"), Verdict::Won);
}

#[test]
fn a_disk_cut_short_is_an_error_not_a_win() {
    let dir = scratch();
    let path = dir.path().join("disk");
    let mut arbiter = init(&path);
    std::fs::File::options().write(true).open(&path).expect("opens").set_len(10_000).expect("cuts");
    let error = arbiter.claim(&claim(1, Side::Backup, 1)).expect_err("cut short");
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn a_rotten_claim_file_is_told_not_overruled() {
    let dir = scratch();
    let mut arbiter = init(dir.path());
    assert_eq!(arbiter.claim(&claim(1, Side::Backup, 1)).expect("a verdict"), Verdict::Won);
    let file = dir.path().join("gen-00000000000000000001");
    let mut raw = std::fs::read(&file).expect("reads");
    raw[100] ^= 1;
    std::fs::write(&file, raw).expect("writes");
    for token in [1, 2] {
        let error = arbiter.claim(&claim(1, Side::Backup, token)).expect_err("rotten");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
    assert_eq!(arbiter.show().expect("shows").damage.len(), 1);
}

/// What a contender that died at any point of `link` leaves behind does no harm, and is cleared away.
#[test]
fn leftovers_of_dead_contenders_do_no_harm() {
    let dir = scratch();
    let mut arbiter = init(dir.path());
    let leftover = "claim-00000000000000000001-02020202020202020202020202020202-0000000000000009";
    std::fs::write(dir.path().join(leftover), "torn").expect("writes");
    assert_eq!(arbiter.show().expect("shows").undecided, [1]);
    assert_eq!(arbiter.claim(&claim(1, Side::Backup, 1)).expect("a verdict"), Verdict::Won);
    assert_eq!(arbiter.show().expect("shows").undecided, []);
    for generation in 2..=17 {
        assert_eq!(arbiter.claim(&claim(generation, Side::Backup, 1)).expect("a verdict"), Verdict::Won);
    }
    let left = std::fs::read_dir(dir.path()).expect("reads").count();
    assert_eq!(left, 1 + 16, "the header and the generations kept");
}

#[test]
fn state_is_told_in_words() {
    let dir = scratch();
    for path in places(dir.path()) {
        let mut arbiter = init(&path);
        assert!(arbiter.show().expect("shows").to_string().contains("nothing claimed"));
        assert_eq!(arbiter.claim(&claim(3, Side::Backup, 0xab)).expect("a verdict"), Verdict::Won);
        let text = arbiter.show().expect("shows").to_string();
        assert!(text.contains("\ngeneration 3: backup with token abababab"), "{text}");
    }
}

#[test]
fn alone_nobody_waits() {
    let dir = scratch();
    for path in places(dir.path()) {
        let mut wait = |_: Duration| panic!("waits");
        let verdict = init(&path).claim_with(&claim(1, Side::Primary, 1), &mut wait);
        assert_eq!(verdict.expect("a verdict"), Verdict::Won);
    }
}

/// A file system that refuses O_DIRECT, unmounted when dropped.
struct RamFs(tempfile::TempDir);

impl RamFs {
    fn mount() -> Result<Self, String> {
        let dir = scratch();
        let output = Command::new("mount").args(["-t", "ramfs", "none"]).arg(dir.path()).output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(Self(dir));
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

impl Drop for RamFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_file_system_without_direct_io_is_used_and_noticed() {
    let ramfs = match RamFs::mount() {
        Ok(ramfs) => ramfs,
        Err(why) => return println!("skipped: no ramfs: {why}"),
    };
    let path = ramfs.0.path().join("disk");
    assert_eq!(init(&path).notice(), Some(Notice::Buffered));
    assert_eq!(open(&path).notice(), Some(Notice::Buffered));
    check_test_and_set(&path);
    println!("notice: {}", Notice::Buffered);
}

/// A block device of the kernel's, detached when dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn attach(file: &Path, sector_size: u32) -> Result<Self, String> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on", "--sector-size", &sector_size.to_string()])
            .arg(file)
            .output()
            .map_err(|error| error.to_string())?;
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() && !device.is_empty() {
            return Ok(Self(device.into()));
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn block_devices_of_either_sector_size() {
    for sector_size in [512, 4096] {
        let dir = scratch();
        let file = dir.path().join("backing");
        std::fs::File::create(&file).expect("creates").set_len(1 << 20).expect("grows");
        let device = match LoopDevice::attach(&file, sector_size) {
            Ok(device) => device,
            Err(why) => {
                println!("skipped: no loop device with {sector_size}-byte sectors: {why}");
                continue;
            }
        };
        let state = init(&device.0).show().expect("shows");
        assert_eq!(state.backend, Backend::Disk { sector_size, slots: 16 });
        check_test_and_set(&device.0);
        println!("block device with {sector_size}-byte sectors: ok");
        if sector_size == 4096 {
            let small = InitOptions { overwrite: true, sector_size: Some(512), ..InitOptions::default() };
            let error = Arbiter::init(&device.0, VM, &small).expect_err("sectors too small");
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        }
    }
}
