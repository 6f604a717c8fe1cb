//! The real `tandem` against the real host and a real control socket.
#![allow(clippy::unwrap_used, reason = "all of it is test code, the functions around the tests too")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use tandem_vmm::host::check::{Report, State};
use tandem_vmm::host::control::{Role, Server, Status, StatusSource};

fn tandem(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tandem")).args(args).env_remove("RUST_LOG").output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn state_of(report: &Report, item: &str) -> State {
    report
        .items
        .iter()
        .find(|found| found.item == item)
        .unwrap_or_else(|| panic!("no {item} in {report}"))
        .state
}

/// Whether a kernel of Linux boots here is known from elsewhere: on KVM's software back end it does
/// not, on hardware it does.
#[test]
fn check_tells_the_truth_about_this_host() {
    let output = tandem(&["check", "--json"]);
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.success(), report.ok);
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        assert!(!report.ok && state_of(&report, "kvm") == State::Fail, "{report}");
        println!("skipped: what guests can run, there is no /dev/kvm here");
        return;
    }
    assert!(report.ok && report.embedded_guest, "{report}");
    for item in ["embedded guest", "dirty log", "MSR filter", "immediate exit"] {
        assert_eq!(state_of(&report, item), State::Ok, "{item}: {report}");
    }
    if Path::new("/sys/module/kvm_pvm").exists() {
        assert!(!report.linux_guests, "{report}");
        let linux = report.items.iter().find(|item| item.item == "Linux guests").unwrap();
        assert_eq!(linux.state, State::Note);
        for reason in ["ring 0 is emulated", "SSE in ring 0", "cmpxchg16b in ring 0", "syscall", "int 0x80"] {
            assert!(linux.found.contains(reason), "{reason}: {linux}");
        }
        assert_eq!(state_of(&report, "single step"), State::Note, "{report}");
    } else {
        assert!(report.linux_guests, "{report}");
    }
    for item in ["tap", "io_uring", "huge pages", "clock", "processors", "kernel module", "RDMA"] {
        assert_ne!(state_of(&report, item), State::Fail, "{item}: {report}");
    }
}

#[test]
fn check_prints_one_line_per_item_and_judges_a_config() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.toml");
    let text = "name = \"demo\"\n\
                [[net]]\ntap = \"tndm-none\"\nmac = \"52:54:00:12:34:56\"\n\
                [pair]\nlisten = \"127.0.0.2:7700\"\nprimary = \"127.0.0.1:7700\"\nkey = \"k\"\narbiter = \"a\"\n";
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let output = tandem(&["check", file]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(
        text.lines().all(|line| ["ok  ", "note", "FAIL"].iter().any(|state| line.starts_with(state))),
        "{text}"
    );
    for expected in [
        "FAIL  tap tndm-none     there is no tap tndm-none; make it with: ip tuntap add dev tndm-none mode tap",
        "FAIL  guest             the embedded guest needs an address",
        "FAIL  pair key          there is no key file",
        "FAIL  arbiter         ",
        "ok    addresses         both are this host's",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }

    fs::write(dir.path().join("k"), "00".repeat(32)).unwrap();
    fs::set_permissions(dir.path().join("k"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    assert!(tandem(&["arbiter", "init", file]).status.success());
    let before = names(&dir.path().join("a"));
    let text = stdout(&tandem(&["check", file]));
    assert!(text.contains("ok    pair key"), "{text}");
    assert!(text.contains("a directory, link(2) works"), "{text}");
    assert_eq!(names(&dir.path().join("a")), before, "check leaves nothing behind");

    fs::remove_dir_all(dir.path().join("a")).unwrap();
    assert!(tandem(&["arbiter", "init", file]).status.success());
    let before = fs::read(dir.path().join("a")).unwrap();
    let text = stdout(&tandem(&["check", file]));
    let (direct, buffered) = ("a: writable, O_DIRECT works", "good for tests on one host");
    assert!(text.contains(direct) || text.contains(buffered), "{text}");
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), before, "check writes nothing to the arbiter");

    let arbiter = dir.path().join("a");
    let arbiter = arbiter.to_str().unwrap();
    let nowhere = dir.path().join("no/where");
    let output = tandem(&["arbiter", "init", nowhere.to_str().unwrap(), "--name", "other"]);
    assert!(stderr(&output).contains("there is no directory"), "{}", stderr(&output));
    assert!(tandem(&["arbiter", "init", arbiter, "--name", "other", "--overwrite"]).status.success());
    let text = stdout(&tandem(&["check", file]));
    assert!(text.contains("is another VM's"), "{text}");
}

fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn an_arbiter_is_made_claimed_and_shown_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let arbiter = dir.path().join("arbiter.img");
    let arbiter = arbiter.to_str().unwrap();
    let claim = |side: &str, generation: &str, rest: &[&str]| {
        let mut args = vec!["arbiter", "claim", arbiter, "--side", side, "--generation", generation];
        args.extend(rest);
        tandem(&args)
    };
    let missing = claim("primary", "1", &[]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("`tandem arbiter init` makes"), "{}", stderr(&missing));
    let nameless = tandem(&["arbiter", "init", arbiter]);
    assert!(stderr(&nameless).contains("give --name NAME"), "{}", stderr(&nameless));
    assert!(tandem(&["arbiter", "init", arbiter, "--name", "demo"]).status.success());
    let again = tandem(&["arbiter", "init", arbiter, "--name", "demo"]);
    assert!(stderr(&again).contains("is already the arbiter of VM"), "{}", stderr(&again));

    let token = "00112233445566778899aabbccddeeff";
    let won = claim("backup", "1", &["--token", token]);
    assert_eq!((won.status.code(), stdout(&won).as_str()), (Some(0), "won\n"));
    let lost = claim("primary", "1", &[]);
    assert_eq!(lost.status.code(), Some(1));
    assert!(
        stdout(&lost).contains(&format!("lost to generation 1: backup with token {token}")),
        "{}",
        stdout(&lost)
    );
    assert_eq!(stdout(&claim("backup", "1", &["--token", token])), "won\n", "for good");
    assert_eq!(claim("backup", "0", &[]).status.code(), Some(2));

    let shown = tandem(&["arbiter", "show", arbiter, "--name", "demo", "--json"]);
    let state: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(state["claims"][0]["token"], token);
    assert_eq!(state["claims"][0]["side"], "backup");
    let other = tandem(&["arbiter", "show", arbiter, "--name", "other"]);
    assert!(stderr(&other).contains("is the arbiter of another VM"), "{}", stderr(&other));
}

#[test]
fn a_claim_waits_for_an_arbiter_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let arbiter = dir.path().join("arbiter.img");
    let waiting = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args([
            "arbiter",
            "claim",
            arbiter.to_str().unwrap(),
            "--wait",
            "--side",
            "primary",
            "--generation",
            "1",
        ])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(tandem(&["arbiter", "init", arbiter.to_str().unwrap(), "--name", "demo"]).status.success());
    let output = waiting.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "won\n"));
}

#[test]
fn a_signal_ends_the_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let waiting = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["arbiter", "claim", "away", "--wait", "--side", "primary", "--generation", "1"])
        .current_dir(dir.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let signal = |signal| {
        // SAFETY: a signal to a child of this test that has not been waited for.
        unsafe { libc::kill(waiting.id() as i32, signal) }
    };
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(signal(libc::SIGTERM), 0);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "ended by itself, not by the signal");
    assert!(stderr(&output).contains("error: interrupted"), "{}", stderr(&output));
}

#[test]
fn a_linux_guest_is_judged_by_what_this_host_can_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.toml");
    fs::write(&file, "name = \"demo\"\n[machine]\nkernel = \"bzImage\"\n").unwrap();
    fs::write(dir.path().join("bzImage"), "").unwrap();
    let output = tandem(&["check", "--json", file.to_str().unwrap()]);
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report.ok, report.linux_guests, "{report}");
    assert_eq!(output.status.success(), report.ok);
}

struct Side;

impl StatusSource for Side {
    fn status(&self) -> Status {
        Status { name: "demo".into(), role: Role::Primary, generation: 7, ..Status::default() }
    }

    fn failover(&self) -> Result<String, String> {
        Ok("the backup at 10.99.0.2:7700 takes over".into())
    }
}

#[test]
fn status_and_failover_ask_a_running_side() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("demo.sock");
    let _server = Server::start(&socket, Arc::new(Side)).unwrap();
    let socket = socket.to_str().unwrap();
    let output = tandem(&["status", socket]);
    assert!(output.status.success());
    assert!(stdout(&output).starts_with("demo: primary\n  generation     7\n"), "{}", stdout(&output));
    let output = tandem(&["status", socket, "--json"]);
    let status: Status = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((status.role, status.generation), (Role::Primary, 7));
    let output = tandem(&["failover", socket]);
    assert_eq!(stdout(&output), "the backup at 10.99.0.2:7700 takes over\n");

    let config = dir.path().join("vm.toml");
    fs::write(&config, "name = \"demo\"\n[control]\nsocket = \"demo.sock\"\n").unwrap();
    let output = tandem(&["status", config.to_str().unwrap()]);
    assert!(stdout(&output).starts_with("demo: primary\n"), "{}", stderr(&output));
}

#[test]
fn a_side_that_does_not_run_is_told_from_one_that_ended() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let output = tandem(&["status", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: no control socket at "), "{}", stderr(&output));
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let output = tandem(&["failover", socket.to_str().unwrap()]);
    assert!(stderr(&output).contains("the tandem that made it has ended"), "{}", stderr(&output));
    let output = tandem(&["status", dir.path().to_str().unwrap()]);
    assert!(stderr(&output).contains("is no control socket"), "{}", stderr(&output));
}
