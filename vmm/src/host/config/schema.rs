//! From TOML to [`Config`]: which keys there are, their defaults, their ranges, and what must fit
//! together.

use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

use super::problem::{Problem, line_of};
use super::section::{At, Problems, Section};
use super::{
    Config, DiskConfig, Kernel, LogAck, LogCompletion, LogTransport, MIB, MacAddress, MachineConfig,
    NetConfig, PairConfig, SerialConfig, SerialInput, SerialOutput, Tsc,
};

/// Every key by section; the empty section is the top of the file.
pub(super) const KEYS: &[(&str, &[&str])] = &[
    ("", &["name", "machine", "net", "disk", "serial", "pair", "control"]),
    ("[machine]", &["memory_mib", "kernel", "initrd", "cmdline", "tick_bound_ms", "tsc"]),
    ("[[net]]", &["tap", "mac"]),
    ("[[disk]]", &["path", "read_only"]),
    ("[serial]", &["output", "input"]),
    (
        "[pair]",
        &[
            "listen",
            "primary",
            "key",
            "encrypt",
            "transport",
            "completion",
            "busy_poll_us",
            "registered_buffers",
            "replay_poll_us",
            "ack",
            "arbiter",
            "heartbeat_ms",
            "missed",
            "log_buffer_mib",
            "lag_bound_ms",
        ],
    ),
    ("[control]", &["socket"]),
];

const TRANSPORTS: [(&str, LogTransport); 2] = [("tcp", LogTransport::Tcp), ("rdma", LogTransport::Rdma)];
const COMPLETIONS: [(&str, LogCompletion); 3] =
    [("events", LogCompletion::Events), ("adaptive", LogCompletion::Adaptive), ("busy", LogCompletion::Busy)];
const ACKS: [(&str, LogAck); 2] = [("read", LogAck::Read), ("placed", LogAck::Placed)];

/// Most cards, and most disks, that a machine can have.
const MOST_DEVICES: usize = 4;
/// Linux takes 2,048 bytes with the end mark; Tandem appends up to eight devices and its own settings.
const LONGEST_CMDLINE: usize = 1_536;
/// `IFNAMSIZ` without the end mark.
const LONGEST_TAP: usize = 15;
/// `sun_path` without the end mark.
const LONGEST_SOCKET: usize = 107;
const LONGEST_NAME: usize = 64;

/// What a path is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A regular file.
    File,
    /// A regular file or a block device.
    Disk,
}

/// Looks at a file, and says what is wrong with it.
pub(super) type Look<'a> = &'a dyn Fn(&Path, Wanted) -> Result<(), String>;

/// Reads a whole config. The config is `None` only if something that has no default is missing or wrong;
/// it counts only when there are no problems.
pub(super) fn read(text: &str, file: &Path, home: &Path, look: Look<'_>) -> (Option<Config>, Vec<Problem>) {
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let line = error.span().map_or(0, |span| line_of(text, span.start));
            let message = format!("not TOML: {}", error.message().trim().replace('\n', ", "));
            return (None, vec![Problem { line, key: String::new(), message }]);
        }
    };
    let root = Section::root(document.get_ref());
    let mut reader = Reader { problems: Problems::new(text), home, look };
    let config = reader.config(&root, file);
    (config, reader.problems.into_sorted())
}

/// Looks at a file on this host.
pub(super) fn look_at_file(path: &Path, wanted: Wanted) -> Result<(), String> {
    let kind = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("{} does not exist", path.display()));
        }
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    match wanted {
        Wanted::File if kind.is_file() => Ok(()),
        Wanted::Disk if kind.is_file() || kind.is_block_device() => Ok(()),
        Wanted::File => Err(format!("{} is not a regular file", path.display())),
        Wanted::Disk => Err(format!("{} is neither a regular file nor a block device", path.display())),
    }
}

/// Says whether a network device can have this name.
pub(super) fn check_tap_name(name: &str) -> Result<(), String> {
    let ok = !name.is_empty()
        && name.len() <= LONGEST_TAP
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if ok {
        return Ok(());
    }
    Err(format!("{name:?} cannot name a device: 1 to {LONGEST_TAP} letters, digits, `-`, `_`, `.`"))
}

/// Says whether a VM can have this name.
pub(super) fn check_vm_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !name.is_empty() && name.len() <= LONGEST_NAME && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(format!("{name:?} cannot name a VM: 1 to {LONGEST_NAME} letters, digits, `.`, `_`, `-`"))
}

struct Reader<'a> {
    problems: Problems<'a>,
    home: &'a Path,
    look: Look<'a>,
}

impl Reader<'_> {
    fn config(&mut self, root: &Section<'_>, file: &Path) -> Option<Config> {
        self.deny_unknown(root, "");
        let name = self.name(root);
        let machine = self.machine(root);
        let nets = self.nets(root);
        let disks = self.disks(root);
        let serial = self.serial(root);
        let pair = self.pair(root);
        let control_socket = self.control(root);
        Some(Config {
            file: file.to_owned(),
            name: name?,
            machine,
            nets,
            disks,
            serial,
            pair,
            control_socket,
        })
    }

    fn deny_unknown(&mut self, section: &Section<'_>, title: &str) {
        let known = KEYS.iter().find(|(section, _)| *section == title).map_or(&[][..], |(_, keys)| keys);
        section.deny_unknown(known, KEYS, &mut self.problems);
    }

    fn name(&mut self, root: &Section<'_>) -> Option<String> {
        let name = root.required_string("name", &mut self.problems)?;
        if let Err(message) = check_vm_name(name.value) {
            self.problems.add(&name.span, name.key, message);
        }
        Some(name.value.to_owned())
    }

    fn machine(&mut self, root: &Section<'_>) -> MachineConfig {
        let section = root.table("machine", &mut self.problems);
        self.deny_unknown(&section, "[machine]");
        let problems = &mut self.problems;
        let memory = section.integer("memory_mib", 64, 16..=65_536, problems) * MIB;
        let tick_bound = section.integer("tick_bound_ms", 5, 1..=1_000, problems);
        let cmdline = section.string("cmdline", problems);
        if let Some(cmdline) = &cmdline {
            if cmdline.value.len() > LONGEST_CMDLINE {
                let message = format!("{} bytes: at most {LONGEST_CMDLINE}", cmdline.value.len());
                problems.add(&cmdline.span, &cmdline.key, message);
            } else if cmdline.value.bytes().any(|byte| byte.is_ascii_control()) {
                problems.add(&cmdline.span, &cmdline.key, "one line, without control characters");
            }
        }
        let tsc = section.string("tsc", problems).map_or(Tsc::Hidden, |tsc| match tsc.value {
            "hidden" => Tsc::Hidden,
            "trapped" => Tsc::Trapped,
            other => {
                let message = format!("{other:?} is not known: \"hidden\" or \"trapped\"");
                problems.add(&tsc.span, tsc.key, message);
                Tsc::Hidden
            }
        });
        let kernel = match section.string("kernel", problems) {
            None => Kernel::Embedded,
            Some(kernel) if kernel.value == "embedded" => Kernel::Embedded,
            Some(kernel) => {
                let path = self.path(&kernel);
                self.expect(&kernel, &path, Wanted::File, "; for the built-in guest say \"embedded\"");
                Kernel::Image(path)
            }
        };
        let initrd = section.string("initrd", &mut self.problems).map(|initrd| {
            let path = self.path(&initrd);
            if kernel == Kernel::Embedded {
                self.problems.add(&initrd.span, &initrd.key, "the embedded guest takes none");
            } else {
                self.expect(&initrd, &path, Wanted::File, "");
            }
            path
        });
        MachineConfig {
            memory,
            kernel,
            initrd,
            cmdline: cmdline.map_or_else(String::new, |cmdline| cmdline.value.to_owned()),
            tick_bound: Duration::from_millis(tick_bound),
            tsc,
        }
    }

    fn nets(&mut self, root: &Section<'_>) -> Vec<NetConfig> {
        let mut nets: Vec<NetConfig> = Vec::new();
        for section in root.tables("net", MOST_DEVICES, &mut self.problems) {
            self.deny_unknown(&section, "[[net]]");
            let tap = section.required_string("tap", &mut self.problems);
            let mac = section.required_parsed::<MacAddress>("mac", &mut self.problems);
            if let Some(tap) = &tap
                && let Err(message) = check_tap_name(tap.value)
            {
                self.problems.add(&tap.span, &tap.key, message);
            }
            let (Some(tap), Some(mac)) = (tap, mac) else { continue };
            if let Some(earlier) = nets.iter().position(|net| net.tap == tap.value) {
                self.problems.add(
                    &tap.span,
                    &tap.key,
                    format!("{:?} is net[{earlier}]'s already", tap.value),
                );
            }
            if let Some(earlier) = nets.iter().position(|net| net.mac == mac.value) {
                self.problems.add(&mac.span, &mac.key, format!("{} is net[{earlier}]'s already", mac.value));
            }
            nets.push(NetConfig { tap: tap.value.to_owned(), mac: mac.value });
        }
        nets
    }

    fn disks(&mut self, root: &Section<'_>) -> Vec<DiskConfig> {
        let mut disks: Vec<DiskConfig> = Vec::new();
        for section in root.tables("disk", MOST_DEVICES, &mut self.problems) {
            self.deny_unknown(&section, "[[disk]]");
            let read_only = section.boolean("read_only", false, &mut self.problems);
            let Some(written) = section.required_string("path", &mut self.problems) else { continue };
            let path = self.path(&written);
            self.expect(&written, &path, Wanted::Disk, "");
            let shared = disks.iter().position(|disk| disk.path == path && !(disk.read_only && read_only));
            if let Some(earlier) = shared {
                let message = format!("is disk[{earlier}]'s already, and one of them writes");
                self.problems.add(&written.span, &written.key, message);
            }
            disks.push(DiskConfig { path, read_only });
        }
        disks
    }

    fn serial(&mut self, root: &Section<'_>) -> SerialConfig {
        let section = root.table("serial", &mut self.problems);
        self.deny_unknown(&section, "[serial]");
        let output = match section.string("output", &mut self.problems) {
            None => SerialOutput::Stdout,
            Some(output) => match output.value {
                "stdout" => SerialOutput::Stdout,
                "none" => SerialOutput::Nowhere,
                _ => SerialOutput::File(self.path(&output)),
            },
        };
        let input = match section.string("input", &mut self.problems) {
            None => SerialInput::Nothing,
            Some(input) => match input.value {
                "none" => SerialInput::Nothing,
                "stdin" => SerialInput::Stdin,
                other => {
                    let message = format!("{other:?} is not known: \"none\" or \"stdin\"");
                    self.problems.add(&input.span, input.key, message);
                    SerialInput::Nothing
                }
            },
        };
        SerialConfig { output, input }
    }

    fn pair(&mut self, root: &Section<'_>) -> Option<PairConfig> {
        let section = root.optional_table("pair", &mut self.problems)?;
        self.deny_unknown(&section, "[pair]");
        let listen = self.address(&section, "listen");
        let primary = self.address(&section, "primary");
        let key = section.required_string("key", &mut self.problems).map(|key| self.path(&key));
        let arbiter = section.required_string("arbiter", &mut self.problems).map(|path| self.path(&path));
        let transport = self.choice(&section, "transport", &TRANSPORTS);
        if transport == LogTransport::Rdma && !cfg!(feature = "rdma") {
            let message = "this tandem is built without RDMA: cargo build --features rdma";
            self.complain(&section, "transport", message);
        }
        let completion = self.choice(&section, "completion", &COMPLETIONS);
        let ack = self.choice(&section, "ack", &ACKS);
        let encrypt = section.boolean("encrypt", false, &mut self.problems);
        if ack == LogAck::Placed && transport != LogTransport::Rdma {
            self.complain(&section, "ack", "\"placed\" is what an RDMA adapter says: transport = \"rdma\"");
        } else if ack == LogAck::Placed && encrypt {
            let message = "\"placed\" cannot be had with `encrypt`: the adapter counts bytes that only the backup can open";
            self.complain(&section, "ack", message);
        }
        let problems = &mut self.problems;
        let busy_poll = section.integer("busy_poll_us", 0, 0..=10_000, problems);
        let registered_buffers = section.boolean("registered_buffers", false, problems);
        let replay_poll = section.integer("replay_poll_us", 1_000, 0..=10_000, problems);
        let heartbeat = section.integer("heartbeat_ms", 10, 1..=1_000, problems);
        let missed = section.integer("missed", 5, 2..=100, problems) as u32;
        let log_buffer = section.integer("log_buffer_mib", 16, 1..=1_024, problems) * MIB;
        let lag_bound = section.integer("lag_bound_ms", 1_000, 10..=60_000, problems);
        let (listen, primary) = (listen?, primary?);
        if listen.value == primary.value {
            problems.add(
                &primary.span,
                &primary.key,
                "is the backup's `listen` too: two sides, two addresses",
            );
        } else if listen.value.is_ipv4() != primary.value.is_ipv4() {
            problems.add(&primary.span, &primary.key, "and `listen` must both be IPv4 or both IPv6");
        }
        Some(PairConfig {
            listen: listen.value,
            primary: primary.value,
            key: key?,
            encrypt,
            transport,
            completion,
            ack,
            busy_poll: Duration::from_micros(busy_poll),
            registered_buffers,
            replay_poll: Duration::from_micros(replay_poll),
            arbiter: arbiter?,
            heartbeat: Duration::from_millis(heartbeat),
            missed,
            log_buffer,
            lag_bound: Duration::from_millis(lag_bound),
        })
    }

    /// One of a few words; the first is the default.
    fn choice<T: Copy>(&mut self, section: &Section<'_>, name: &str, words: &[(&str, T)]) -> T {
        let default = words[0].1;
        let Some(written) = section.string(name, &mut self.problems) else { return default };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == written.value) {
            return *value;
        }
        let known: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        let message = format!("{:?} is not known: {}", written.value, known.join(" or "));
        self.problems.add(&written.span, written.key, message);
        default
    }

    /// A problem of a key that is there.
    fn complain(&mut self, section: &Section<'_>, name: &str, message: &str) {
        if let Some(written) = section.string(name, &mut self.problems) {
            self.problems.add(&written.span, written.key, message);
        }
    }

    fn control(&mut self, root: &Section<'_>) -> Option<PathBuf> {
        let section = root.optional_table("control", &mut self.problems)?;
        self.deny_unknown(&section, "[control]");
        let socket = section.string("socket", &mut self.problems)?;
        let path = self.path(&socket);
        let length = path.as_os_str().len();
        if length > LONGEST_SOCKET {
            let message = format!(
                "{} has {length} bytes: a socket's path has at most {LONGEST_SOCKET}",
                path.display()
            );
            self.problems.add(&socket.span, socket.key, message);
        }
        Some(path)
    }

    /// An address that the other host can send to.
    fn address(&mut self, section: &Section<'_>, name: &str) -> Option<At<SocketAddr>> {
        let written = section.required_string(name, &mut self.problems)?;
        let wrong = match written.value.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => "the port must not be 0".to_owned(),
            Ok(address) if address.ip().is_unspecified() => {
                format!("{} names no host: give the address that the other side reaches", address.ip())
            }
            Ok(address) if address.ip().is_multicast() => "a multicast address is not one host's".to_owned(),
            Ok(value) => return Some(At { value, span: written.span, key: written.key }),
            Err(_) => format!("{:?} is not an address with a port, as in 10.99.0.2:7700", written.value),
        };
        self.problems.add(&written.span, written.key, wrong);
        None
    }

    fn path(&mut self, written: &At<&str>) -> PathBuf {
        if written.value.is_empty() || written.value.contains('\0') {
            self.problems.add(&written.span, &written.key, "is not a path");
        }
        self.home.join(written.value)
    }

    fn expect(&mut self, written: &At<&str>, path: &Path, wanted: Wanted, otherwise: &str) {
        if written.value.is_empty() {
            return;
        }
        if let Err(message) = (self.look)(path, wanted) {
            let span: &Range<usize> = &written.span;
            self.problems.add(span, &written.key, format!("{message}{otherwise}"));
        }
    }
}
