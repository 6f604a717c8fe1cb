use super::*;
use proptest::prelude::*;

const FULL: &str = r#"
name = "demo"

[machine]
memory_mib = 128
kernel = "bzImage"
initrd = "/boot/initrd.img"
cmdline = "console=ttyS0"
tick_bound_ms = 2
tsc = "trapped"

[[net]]
tap = "tap0"
mac = "52:54:00:12:34:56"

[[disk]]
path = "disk.img"
read_only = true

[serial]
output = "none"
input = "stdin"

[pair]
listen = "10.99.0.2:7700"
primary = "10.99.0.1:7700"
key = "pair.key"
encrypt = true
arbiter = "arbiter.img"
heartbeat_ms = 20
missed = 4
log_buffer_mib = 8
lag_bound_ms = 500

[control]
socket = "/run/tandem/demo.sock"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("dir/vm.toml"))
}

/// The messages, one a line, as the user sees them.
fn complaints(text: &str) -> Vec<String> {
    parse(text).unwrap_err().to_string().lines().map(str::to_owned).collect()
}

#[test]
fn every_key_is_read_in_its_unit() {
    let config = parse(FULL).unwrap();
    assert_eq!(config.name, "demo");
    assert_eq!(
        config.machine,
        MachineConfig {
            memory: 128 << 20,
            kernel: Kernel::Image("dir/bzImage".into()),
            initrd: Some("/boot/initrd.img".into()),
            cmdline: "console=ttyS0".into(),
            tick_bound: Duration::from_millis(2),
            tsc: Tsc::Trapped,
        }
    );
    let mac = MacAddress::new([0x52, 0x54, 0, 0x12, 0x34, 0x56]).unwrap();
    assert_eq!(config.nets, [NetConfig { tap: "tap0".into(), mac }]);
    assert_eq!(config.disks, [DiskConfig { path: "dir/disk.img".into(), read_only: true }]);
    assert_eq!(config.serial, SerialConfig { output: SerialOutput::Nowhere, input: SerialInput::Stdin });
    let pair = config.pair().unwrap();
    assert_eq!(pair.listen.to_string(), "10.99.0.2:7700");
    assert_eq!(pair.primary.to_string(), "10.99.0.1:7700");
    assert_eq!((pair.key.as_path(), pair.encrypt), (Path::new("dir/pair.key"), true));
    assert_eq!(pair.arbiter, Path::new("dir/arbiter.img"));
    assert_eq!((pair.heartbeat, pair.missed), (Duration::from_millis(20), 4));
    assert_eq!(pair.patience(), Duration::from_millis(80));
    assert_eq!((pair.log_buffer, pair.lag_bound), (8 << 20, Duration::from_millis(500)));
    assert_eq!(config.control_socket, Some("/run/tandem/demo.sock".into()));
}

#[test]
fn a_name_alone_is_a_config_with_every_default() {
    let config = parse("name = \"tiny\"").unwrap();
    assert_eq!(config.machine.memory, 64 << 20);
    assert_eq!(config.machine.kernel, Kernel::Embedded);
    assert_eq!(config.machine.tick_bound, Duration::from_millis(5));
    assert_eq!(config.machine.tsc, Tsc::Hidden);
    assert!(config.nets.is_empty() && config.disks.is_empty());
    assert_eq!(config.serial, SerialConfig { output: SerialOutput::Stdout, input: SerialInput::Nothing });
    assert_eq!((config.pair.is_none(), config.control_socket.is_none()), (true, true));
    let error = config.pair().unwrap_err().to_string();
    assert_eq!(
        error,
        "dir/vm.toml: [pair]: missing: a primary and a backup need it, with listen, primary, key and arbiter"
    );
}

#[test]
fn a_pair_has_documented_defaults() {
    let text = "name = \"a\"\n[pair]\nlisten = \"10.0.0.2:1\"\nprimary = \"10.0.0.1:1\"\nkey = \"k\"\narbiter = \"a\"";
    let pair = parse(text).unwrap().pair.unwrap();
    assert_eq!((pair.heartbeat, pair.missed, pair.encrypt), (Duration::from_millis(10), 5, false));
    assert_eq!((pair.log_buffer, pair.lag_bound), (16 << 20, Duration::from_secs(1)));
    assert_eq!((pair.busy_poll, pair.registered_buffers), (Duration::ZERO, false));
    assert_eq!(pair.replay_poll, Duration::from_millis(1));
    let pair = parse(&format!("{text}\nbusy_poll_us = 50\nregistered_buffers = true\nreplay_poll_us = 0"));
    let pair = pair.unwrap().pair.unwrap();
    assert_eq!((pair.busy_poll, pair.registered_buffers), (Duration::from_micros(50), true));
    assert_eq!(pair.replay_poll, Duration::ZERO);
}

#[test]
fn all_mistakes_are_told_at_once_each_with_its_line_and_key() {
    let text = "name = \"demo\"\n\
                [machine]\n\
                memory_mib = 8\n\
                memory_mb = 64\n\
                tick_bound_ms = \"fast\"\n\
                tsc = \"native\"\n\
                [[net]]\n\
                tap = \"a-name-that-is-too-long\"\n\
                mac = \"53:54:00:12:34:56\"\n\
                [[net]]\n\
                tap = \"tap1\"\n";
    assert_eq!(
        complaints(text),
        [
            "dir/vm.toml:3: machine.memory_mib: 8 is out of range: 16 to 65536",
            "dir/vm.toml:4: machine.memory_mb: unknown key; did you mean `memory_mib`?",
            "dir/vm.toml:5: machine.tick_bound_ms: expected a whole number, found a string",
            "dir/vm.toml:6: machine.tsc: \"native\" is not known: \"hidden\" or \"trapped\"",
            "dir/vm.toml:8: net[0].tap: \"a-name-that-is-too-long\" cannot name a device: 1 to 15 letters, digits, \
             `-`, `_`, `.`",
            "dir/vm.toml:9: net[0].mac: \"53:54:00:12:34:56\": is a multicast address: the second digit must be \
             even, as in 52:…",
            "dir/vm.toml:10: net[1].mac: missing: it has no default",
        ]
    );
}

#[test]
fn a_key_in_the_wrong_section_is_sent_home() {
    assert_eq!(
        complaints("name = \"a\"\nmemory_mib = 64\n[machine]\nlisten = \"10.0.0.1:1\"\nname = \"b\""),
        [
            "dir/vm.toml:2: memory_mib: unknown key here; it belongs in [machine]",
            "dir/vm.toml:4: machine.listen: unknown key here; it belongs in [pair]",
            "dir/vm.toml:5: machine.name: unknown key here; it belongs above the first section",
        ]
    );
}

#[test]
fn text_that_is_not_toml_names_its_line() {
    let complaints = complaints("name = \"a\"\n[machine\n");
    assert!(complaints[0].starts_with("dir/vm.toml:2: not TOML: "), "{complaints:?}");
    assert_eq!(complaints.len(), 1);
}

#[test]
fn numbers_of_any_size_and_base_stay_in_range() {
    for (written, ok) in [
        ("0x40", true),
        ("65_536", true),
        ("65537", false),
        ("-1", false),
        ("99999999999999999999999999999999999999999999", false),
        ("1.5", false),
    ] {
        let result = parse(&format!("name = \"a\"\n[machine]\nmemory_mib = {written}"));
        assert_eq!(result.is_ok(), ok, "{written}: {result:?}");
    }
}

#[test]
fn sections_that_do_not_fit_together_are_told_apart() {
    let pair = |listen: &str, primary: &str| {
        complaints(&format!(
            "name = \"a\"\n[pair]\nkey = \"k\"\narbiter = \"a\"\nlisten = \"{listen}\"\nprimary = \"{primary}\""
        ))
    };
    for (listen, primary, expected) in [
        ("10.0.0.1:1", "10.0.0.1:1", "dir/vm.toml:6: pair.primary: is the backup's `listen` too"),
        ("10.0.0.1:1", "[::1]:1", "dir/vm.toml:6: pair.primary: and `listen` must both be IPv4"),
        ("0.0.0.0:1", "10.0.0.1:1", "dir/vm.toml:5: pair.listen: 0.0.0.0 names no host"),
        ("10.0.0.1:0", "10.0.0.1:1", "dir/vm.toml:5: pair.listen: the port must not be 0"),
        ("224.0.0.1:1", "10.0.0.1:1", "dir/vm.toml:5: pair.listen: a multicast address"),
        ("backup:7700", "10.0.0.1:1", "dir/vm.toml:5: pair.listen: \"backup:7700\" is not an address"),
    ] {
        let complaints = pair(listen, primary);
        assert!(complaints[0].starts_with(expected), "{complaints:?}");
        assert_eq!(complaints.len(), 1, "{complaints:?}");
    }
    assert_eq!(
        complaints("name = \"a\"\n[pair]\nlisten = \"10.0.0.2:1\""),
        [
            "dir/vm.toml:2: pair.primary: missing: it has no default",
            "dir/vm.toml:2: pair.key: missing: it has no default",
            "dir/vm.toml:2: pair.arbiter: missing: it has no default",
        ]
    );
    let twice = "[[net]]\ntap = \"t\"\nmac = \"02:00:00:00:00:01\"\n".repeat(2);
    assert_eq!(
        complaints(&format!("name = \"a\"\n{twice}")),
        [
            "dir/vm.toml:6: net[1].tap: \"t\" is net[0]'s already",
            "dir/vm.toml:7: net[1].mac: 02:00:00:00:00:01 is net[0]'s already",
        ]
    );
    let disks =
        "name = \"a\"\n[[disk]]\npath = \"d\"\nread_only = true\n[[disk]]\npath = \"d\"\nread_only = false";
    assert_eq!(
        complaints(disks),
        ["dir/vm.toml:6: disk[1].path: is disk[0]'s already, and one of them writes"]
    );
    assert!(parse(&disks.replace("= false", "= true")).is_ok());
    let five = "[[disk]]\npath = \"d\"\nread_only = true\n".repeat(5);
    let complaints = complaints(&format!("name = \"a\"\n{five}"));
    assert_eq!(complaints, ["dir/vm.toml:14: disk[4]: too many: at most 4 are possible"]);
}

#[test]
fn wrong_shapes_are_named_as_what_they_are() {
    assert_eq!(
        complaints("name = 1\nmachine = 2\nnet = 3\ndisk = [4]\n"),
        [
            "dir/vm.toml:1: name: expected a string in quotes, found a whole number",
            "dir/vm.toml:2: machine: expected a section [machine], found a whole number",
            "dir/vm.toml:3: net: expected [[net]] with double brackets, found a whole number",
            "dir/vm.toml:4: disk[0]: expected a section [[disk]], found a whole number",
        ]
    );
    assert_eq!(
        complaints("[net]\ntap = \"t\""),
        [
            "dir/vm.toml:1: name: missing: it has no default",
            "dir/vm.toml:1: net: expected [[net]] with double brackets, found a section",
        ]
    );
}

#[test]
fn the_files_of_the_machine_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.toml");
    fs::write(&file, "name = \"a\"\n[machine]\nkernel = \"bzImage\"\n[[disk]]\npath = \"d.img\"").unwrap();
    let here = dir.path().display();
    assert_eq!(
        Config::load(&file).unwrap_err().to_string(),
        format!(
            "{here}/vm.toml:3: machine.kernel: {here}/bzImage does not exist; for the built-in guest say \"embedded\"\n\
             {here}/vm.toml:5: disk[0].path: {here}/d.img does not exist"
        )
    );
    fs::write(dir.path().join("bzImage"), "").unwrap();
    fs::create_dir(dir.path().join("d.img")).unwrap();
    assert_eq!(
        Config::load(&file).unwrap_err().to_string(),
        format!("{here}/vm.toml:5: disk[0].path: {here}/d.img is neither a regular file nor a block device")
    );
    fs::remove_dir(dir.path().join("d.img")).unwrap();
    fs::write(dir.path().join("d.img"), "").unwrap();
    assert_eq!(Config::load(&file).unwrap().disks[0].path, dir.path().join("d.img"));
    let absent = Config::load(Path::new("/nonexistent/vm.toml")).unwrap_err().to_string();
    assert!(
        absent.starts_with("/nonexistent/vm.toml: cannot read the config file: No such file"),
        "{absent}"
    );
}

#[test]
fn a_vm_keeps_its_identity_for_ever() {
    let config = parse("name = \"demo\"").unwrap();
    assert_eq!(config.vm_id().to_string(), "a08c410bdfa1d0956efac22e647bc691");
    assert_ne!(vm_id("demo"), vm_id("demo2"));
    assert!(check_vm_name("a b").is_err() && check_vm_name("").is_err() && check_vm_name("a-b.c_1").is_ok());
}

#[test]
fn taps_are_replaced_in_order_and_never_invented() {
    let mut config = parse(FULL).unwrap();
    config.override_taps(&["other0".into()]).unwrap();
    assert_eq!(config.nets[0].tap, "other0");
    assert!(config.override_taps(&["a".into(), "b".into()]).is_err());
    assert!(config.override_taps(&["a/b".into()]).is_err());
}

proptest! {
    #[test]
    fn arbitrary_text_gets_an_answer(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn arbitrary_toml_gets_an_answer(
        lines in prop::collection::vec((0..KEYED.len(), 0..VALUES.len()), 0..24),
    ) {
        let text: String =
            lines.iter().map(|&(key, value)| format!("{}{}\n", KEYED[key], if KEYED[key].ends_with(']') { "" } else { VALUES[value] })).collect();
        if let Err(error) = parse(&text) {
            prop_assert!(!error.problems.is_empty());
        }
    }

    #[test]
    fn a_byte_changed_in_a_good_file_gets_an_answer(at in 0..FULL.len(), byte in 0u8..128) {
        let mut text = FULL.as_bytes().to_vec();
        text[at] = byte;
        if let Ok(text) = String::from_utf8(text) {
            let _ = parse(&text);
        }
    }
}

const KEYED: &[&str] = &[
    "[machine]",
    "[[net]]",
    "[[disk]]",
    "[serial]",
    "[pair]",
    "[control]",
    "[net]",
    "name = ",
    "memory_mib = ",
    "kernel = ",
    "initrd = ",
    "cmdline = ",
    "tsc = ",
    "tap = ",
    "mac = ",
    "path = ",
    "read_only = ",
    "listen = ",
    "primary = ",
    "key = ",
    "arbiter = ",
    "heartbeat_ms = ",
    "socket = ",
    "machine.x.y = ",
];
const VALUES: &[&str] = &[
    "1",
    "-1",
    "1e400",
    "true",
    "\"\"",
    "\"a\"",
    "\"\\u0000\"",
    "\"10.0.0.1:1\"",
    "\"02:00:00:00:00:01\"",
    "[]",
    "[{}]",
    "{}",
    "1979-05-27",
    "0xffffffffffffffffffff",
    "nan",
];

#[test]
fn placed_is_for_rdma_without_encryption() {
    let pair = "name = \"a\"\n[pair]\nlisten = \"10.0.0.1:1\"\nprimary = \"10.0.0.2:1\"\nkey = \"k\"\narbiter = \"a\"\n";
    let over_tcp = parse(&format!("{pair}ack = \"placed\"")).unwrap_err().to_string();
    assert!(over_tcp.contains("pair.ack") && over_tcp.contains("transport = \"rdma\""), "{over_tcp}");
    let rdma = format!("{pair}transport = \"rdma\"\nack = \"placed\"\n");
    let sealed = parse(&format!("{rdma}encrypt = true")).unwrap_err().to_string();
    assert!(sealed.contains("encrypt"), "{sealed}");
    if cfg!(feature = "rdma") {
        assert_eq!(parse(&rdma).unwrap().pair().unwrap().ack, LogAck::Placed);
        assert_eq!(parse(pair).unwrap().pair().unwrap().ack, LogAck::Read);
    }
}
