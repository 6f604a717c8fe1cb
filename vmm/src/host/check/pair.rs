//! What a pair needs besides: key, arbiter, addresses.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::report::{Item, Report};
use crate::host::config::{PairConfig, read_key};

/// Adds the findings about a config's `[pair]`.
pub(super) fn look(report: &mut Report, pair: &PairConfig) {
    report.add(match read_key(&pair.key) {
        Ok(_) => Item::ok("pair key", format!("{}", pair.key.display())),
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            Item::fail("pair key", format!("{error}{cause}"))
                .remedy(format!("openssl rand -hex 32 > {0} && chmod 600 {0}", pair.key.display()))
        }
    });
    report.add(arbiter(&pair.arbiter));
    report.add(addresses(pair));
}

/// The arbiter must be readable and writable. Nothing in it is changed: in a directory a name of our
/// own is linked and removed.
fn arbiter(path: &Path) -> Item {
    let shown = path.display();
    let kind = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) => {
            return Item::fail("arbiter", format!("{shown}: {error}"))
                .remedy("mount the shared disk, or make it once with `tandem arbiter init`");
        }
    };
    if kind.is_dir() {
        return match try_link(path) {
            Ok(()) => Item::ok("arbiter", format!("{shown}: a directory, link(2) works")),
            Err(error) => Item::fail("arbiter", format!("{shown}: link(2) fails: {error}"))
                .remedy("take a file system with hard links that this user may write to"),
        };
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Item::fail("arbiter", format!("{shown} is neither a file, a block device nor a directory"));
    }
    let what = if kind.is_file() { "a file" } else { "a block device" };
    if let Err(error) = OpenOptions::new().read(true).write(true).open(path) {
        return Item::fail("arbiter", format!("{shown}: {what}, but not writable: {error}"));
    }
    match read_direct(path) {
        Ok(()) => Item::ok("arbiter", format!("{shown}: {what}, writable, O_DIRECT works")),
        Err(error) => {
            Item::note("arbiter", format!("{shown}: {what}, writable, but O_DIRECT fails: {error}")).remedy(
                "across hosts the page cache would hide the other side's claim: take another file system",
            )
        }
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

fn read_direct(path: &Path) -> io::Result<()> {
    #[repr(align(4096))]
    struct Sector([u8; 4096]);
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut sector = Sector([0; 4096]);
    // SAFETY: the buffer is as long as said and outlives the call.
    let read = unsafe { libc::pread(file.as_raw_fd(), sector.0.as_mut_ptr().cast(), sector.0.len(), 0) };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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
