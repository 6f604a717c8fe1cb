//! A pair on two machines, its log over RDMA: one is ended as a power cut would, and nothing acknowledged may be lost.
//!
//! Each machine runs its part (`tandem-hosts`, started by `tests/rdma/hosts`). Between them are two cables, eth0 for the log and
//! eth1 for the clients, who are on the backup's machine; and a directory that both see. In it are the arbiter (a
//! directory: claims by `link(2)`), what the two must have in common, and a file for each step that the other waits for.

use std::fs;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tandem_arbiter::{Arbiter, InitOptions};
use tandem_vmm::host::config::vm_id;
use tandem_vmm::host::control::Role;

use crate::bed::{Program, ping};
use crate::client::{Client, Load, Report, Within};
use crate::config::{Files, Guest, Pace, RdmaLog, Spec, config_text, new_key, run_directory};
use crate::lab::{GUEST, Host, Lab, RdmaDevices};
use crate::side::Side;

const NAME: &str = "hosts";
const PACE: Pace = Pace::EMULATED;
/// The cards of either machine.
const LOG: &str = "eth0";
const CLIENTS: &str = "eth1";
/// The client has replies for so long before the primary's machine is ended.
const BEFORE: Duration = Duration::from_secs(10);
/// Between two looks at the directory that both see.
const LOOK: Duration = Duration::from_millis(200);

/// A wait of so many seconds on hardware.
fn patience(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * f64::from(PACE.patience))
}

/// The directory that both machines see, at the same place.
#[derive(Debug)]
pub struct Shared {
    directory: PathBuf,
}

impl Shared {
    /// It exists.
    #[must_use]
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn arbiter(&self) -> PathBuf {
        self.directory.join("arbiter")
    }

    /// Says that a step was made.
    fn say(&self, step: &str) -> anyhow::Result<()> {
        fs::write(self.directory.join(step), "").with_context(|| format!("cannot say {step}"))
    }

    fn wait_for(&self, step: &str, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        while !self.directory.join(step).exists() {
            ensure!(Instant::now() < deadline, "the other machine did not say {step} in {patience:.0?}");
            sleep(LOOK);
        }
        Ok(())
    }
}

/// One machine: its host of the lab, and what the side on it needs.
struct Machine {
    lab: Lab,
    _device: RdmaDevices,
    files: Files,
    host: Host,
}

impl Machine {
    fn new(host: Host, config: &str, key: &str) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        lab.log_leaves_by(LOG, host)?;
        lab.clients_leave_by(CLIENTS, host)?;
        let device = RdmaDevices::new();
        device.renew_on(&lab, host)?;
        let files = Files::provide(&run_directory(NAME)?, NAME, config, key)?;
        Ok(Self { lab, _device: device, files, host })
    }

    fn start(&self, command: &str) -> anyhow::Result<Side> {
        let launch = self.files.launch(Program::tandem()?.path(), command, &self.lab, self.host)?;
        Ok(Side::new(launch.start()?, self.files.control(self.host)))
    }
}

/// The primary's machine: runs the VM until somebody ends the machine.
///
/// # Errors
/// When the VM does not come up, or the machine is not ended.
pub fn primary(shared: &Shared) -> anyhow::Result<()> {
    shared.wait_for("backup", patience(15.0))?;
    let read = |name: &str| fs::read_to_string(shared.directory.join(name)).context("no config or key");
    let machine = Machine::new(Host::Primary, &read("vm.toml")?, read("key")?.trim())?;
    let mut side = machine.start("primary")?;
    side.wait_for_role(&[Role::Primary], patience(5.0))?;
    let deadline = Instant::now() + patience(15.0);
    while Instant::now() < deadline {
        side.must_run()?;
        sleep(LOOK);
    }
    bail!("nobody ended this machine")
}

/// What was seen from the backup's machine.
#[derive(Debug)]
pub struct Seen {
    /// What the client found.
    pub report: Report,
    /// From the order to end the primary's machine until a reply came.
    pub outage: Duration,
    /// A guest with a TSC that the kernel modules serve: what it saw of its clocks, of both machines' one after the other.
    pub clocks: Option<Within>,
}

/// The backup's machine, with the clients: has the primary's machine ended, and looks what is left.
///
/// # Errors
/// When the pair does not come up, or the backup does not take over as it must.
pub fn backup(shared: &Shared, guest: Guest, log: &RdmaLog) -> anyhow::Result<Seen> {
    let trapped_tsc = guest.watches_its_clocks();
    let spec = Spec { name: NAME.to_owned(), guest, pace: PACE };
    fs::create_dir(shared.arbiter())?;
    Arbiter::init(&shared.arbiter(), vm_id(NAME), &InitOptions::default())?;
    let config =
        config_text(&spec).replace("\"arbiter.img\"", &format!("{:?}", shared.arbiter())) + &log.keys();
    let key = new_key()?;
    fs::write(shared.directory.join("vm.toml"), &config)?;
    fs::write(shared.directory.join("key"), &key)?;
    let machine = Machine::new(Host::Backup, &config, &key)?;
    let mut side = machine.start("backup")?;
    shared.say("backup")?;
    side.wait_for_role(&[Role::Backup], patience(10.0))?;
    let server = SocketAddrV4::new(GUEST, 6379);
    wait_for_server(&machine.lab, &mut side, &SocketAddr::V4(server))?;
    let load = Load {
        busy: 4,
        pace: Duration::from_millis(200),
        patience: patience(5.0),
        stragglers: Duration::from_millis(PACE.heartbeat_ms * PACE.missed / 2),
        ..Load::new(server, 1)
    };
    let stragglers = load.stragglers;
    let client = Client::start(Some(machine.lab.client()), load)?;
    sleep(BEFORE);
    client.wait_for_replies(Instant::now(), patience(5.0)).context("before the machine's end")?;
    ensure!(side.role() == Some(Role::Backup), "the sides had switched before: {}", side.state());
    let within = |reports| {
        trapped_tsc.then(|| Within::ask(machine.lab.client(), server, reports, patience(5.0))).transpose()
    };
    let before = within(None)?;
    let at = Instant::now();
    shared.say("strike")?;
    side.wait_for_role(&[Role::Live], patience(3.0))?;
    sleep(stragglers);
    client.wait_for_replies(Instant::now(), patience(5.0)).context("after the machine's end")?;
    if let Some(told) = side.divergence() {
        bail!("divergence: {told}");
    }
    // One report may have been on its way at the end.
    let clocks = within(before.map(|before| before.reports + 1))?;
    let claims = Arbiter::open(&shared.arbiter())?.show()?.claims;
    ensure!(
        claims.iter().any(|claim| claim.side == tandem_arbiter::Side::Backup),
        "nobody claimed: {claims:?}"
    );
    let report = client.finish()?;
    let outage = report.outage(at).context("no reply came after the machine's end")?;
    let tsc = side.status()?.tsc;
    ensure!(!trapped_tsc || tsc == "trapped", "the module does not serve the TSC: it is {tsc}");
    Ok(Seen { report, outage, clocks })
}

fn wait_for_server(lab: &Lab, side: &mut Side, server: &SocketAddr) -> anyhow::Result<()> {
    // Linux boots for some twenty seconds, in emulation.
    let deadline = Instant::now() + patience(5.0);
    while !lab.client().enter(|| ping(server, patience(0.05)))? {
        side.must_run()?;
        ensure!(Instant::now() < deadline, "the guest's Redis does not answer; {}", side.state());
    }
    Ok(())
}
