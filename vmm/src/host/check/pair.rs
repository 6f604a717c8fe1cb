//! What a pair needs besides: key, arbiter, addresses.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::path::Path;

use tandem_arbiter::{Arbiter, VmId};

use super::report::{Item, Report};
use crate::host::config::{PairConfig, read_key};

/// Adds the findings about a config's `[pair]`.
pub(super) fn look(report: &mut Report, pair: &PairConfig, vm: VmId) {
    report.add(match read_key(&pair.key) {
        Ok(_) => Item::ok("pair key", format!("{}", pair.key.display())),
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            Item::fail("pair key", format!("{error}{cause}"))
        }
    });
    report.add(arbiter(&pair.arbiter, vm));
    report.add(addresses(pair));
}

/// The arbiter must be made for this VM and be writable. Nothing in it is changed: in a directory a name
/// of our own is linked and removed.
fn arbiter(path: &Path, vm: VmId) -> Item {
    let shown = path.display();
    let opened = match Arbiter::open(path) {
        Ok(opened) => opened,
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            return Item::fail("arbiter", format!("{error}{cause}"));
        }
    };
    if opened.vm() != vm {
        return Item::fail("arbiter", format!("{shown} is another VM's"))
            .remedy("each VM has its own: name another path and make it with `tandem arbiter init`");
    }
    if path.is_dir() {
        return match try_link(path) {
            Ok(()) => Item::ok("arbiter", format!("{shown}: a directory, link(2) works")),
            Err(error) => Item::fail("arbiter", format!("{shown}: link(2) fails: {error}"))
                .remedy("take a file system with hard links that this user may write to"),
        };
    }
    match opened.notice() {
        None => Item::ok("arbiter", format!("{shown}: writable, O_DIRECT works")),
        Some(notice) => Item::note("arbiter", format!("{shown}: {notice}")),
    }
}

fn try_link(dir: &Path) -> io::Result<()> {
    let name = |end: &str| dir.join(format!(".tandem-check-{}-{end}", std::process::id()));
    let (from, to) = (name("a"), name("b"));
    let tried = OpenOptions::new().write(true).create_new(true).open(&from).and_then(|_| {
        let linked = fs::hard_link(&from, &to);
        let again = fs::hard_link(&from, &to);
        let _ = fs::remove_file(&to);
        linked?;
        match again {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(io::Error::other("two links of one name both succeed")),
        }
    });
    let _ = fs::remove_file(&from);
    tried
}

/// One of the two addresses must be this host's, or neither side can run here. Binding a port of the
/// kernel's choice shows it without disturbing anybody.
fn addresses(pair: &PairConfig) -> Item {
    let ours = |address: std::net::SocketAddr| UdpSocket::bind((address.ip(), 0)).is_ok();
    match (ours(pair.primary), ours(pair.listen)) {
        (true, true) => Item::ok("addresses", "both are this host's"),
        (true, false) => Item::ok("addresses", format!("{} is this host's: the primary", pair.primary.ip())),
        (false, true) => Item::ok("addresses", format!("{} is this host's: the backup", pair.listen.ip())),
        (false, false) => {
            let found = format!("neither {} nor {} is this host's", pair.primary.ip(), pair.listen.ip());
            Item::fail("addresses", found).remedy("run check on the two hosts, in their network namespaces")
        }
    }
}
