//! Where it is measured: the two namespaces of tests/rdma/bed, and channels between them.

use anyhow::{Context, Result, anyhow, ensure};
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tandem_logchan::channel::{self, Link};
use tandem_logchan::codec::SchemaDigest;
use tandem_logchan::handshake::{Hello, Identity, PreSharedKey, Side};
use tandem_logchan::transport::rdma::{PingPong, RdmaConfig};
use tandem_logchan::transport::{ReceiveHalf, SendHalf, tcp};

use tandem_tests::lab::{BACKUP, Host, Lab};

use crate::channel::Channel;
use crate::pin;

/// With a peer, while a connection is set up.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The two namespaces of tests/rdma/bed.
#[derive(Clone, Debug)]
pub(super) struct Bed {
    namespaces: [String; 2],
    backup: IpAddr,
}

impl Bed {
    /// As the environment says.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn find() -> Result<Self> {
        let bed = std::env::var("TANDEM_RDMA_BED").context("no RDMA bed: run this by tests/rdma/bench")?;
        let words: Vec<&str> = bed.split(' ').collect();
        ensure!(words.len() == 6, "TANDEM_RDMA_BED={bed}");
        Ok(Self { namespaces: [words[0], words[1]].map(str::to_owned), backup: words[3].parse()? })
    }

    /// The hosts of a lab whose log's cable has RDMA devices.
    pub(super) fn of(lab: &Lab) -> Self {
        let namespaces = [Host::Primary, Host::Backup].map(|host| lab.host(host).name().to_owned());
        Self { namespaces, backup: BACKUP.into() }
    }

    /// Moves this thread into a side's namespace.
    fn enter(&self, side: usize) -> Result<()> {
        let namespace = File::open(format!("/run/netns/{}", self.namespaces[side]))?;
        // SAFETY: an open namespace.
        let done = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
        ensure!(done == 0, std::io::Error::last_os_error());
        Ok(())
    }

    /// A channel from the one to the other, its backup's threads on a core.
    ///
    /// # Errors
    /// There is no connection.
    pub(super) fn channel(
        &self,
        link: &Link,
        backup_core: usize,
    ) -> Result<Channel<Box<dyn SendHalf>, Box<dyn ReceiveHalf>>> {
        self.enter(1)?;
        let listener = TcpListener::bind((self.backup, 0))?;
        let address = listener.local_addr()?;
        let (bed, there) = (self.clone(), *link);
        let backup = std::thread::spawn(move || {
            bed.enter(1)?;
            let (stream, _) = listener.accept()?;
            let key = PreSharedKey::new([7; 32]);
            anyhow::Ok(channel::backup(stream, hello(Side::Backup), &key, &there, PATIENCE, 0)?)
        });
        self.enter(0)?;
        let primary = self.primary(address, link);
        let backup = backup.join().map_err(|_| anyhow!("the backup's thread panicked"))??;
        let primary = primary?;
        let mut ends = (backup.receiver, backup.reader);
        if matches!(link, Link::Rdma(RdmaConfig { placed: true, .. })) {
            ends.0.count_as_placed();
        }
        Ok(Channel::new(primary.sender, primary.acks, primary.state, ends, backup_core))
    }

    /// Bare writes of `len` bytes there and back; who answers ends with this.
    ///
    /// # Errors
    /// There is no connection.
    pub(super) fn bare(&self, len: usize, echo_core: usize) -> Result<PingPong> {
        self.enter(1)?;
        let listener = TcpListener::bind((self.backup, 0))?;
        let address = listener.local_addr()?;
        let bed = self.clone();
        let key = || PreSharedKey::new([7; 32]);
        std::thread::spawn(move || {
            bed.enter(1)?;
            let _pinned = pin::to_core(echo_core)?;
            let mut end = PingPong::open(listener.accept()?.0, Side::Backup, &key(), len, PATIENCE)?;
            while end.echo().is_ok() {}
            anyhow::Ok(())
        });
        self.enter(0)?;
        Ok(PingPong::open(tcp::connect(address, PATIENCE)?, Side::Primary, &key(), len, PATIENCE)?)
    }

    fn primary(&self, address: SocketAddr, link: &Link) -> Result<channel::PrimaryEnds> {
        let stream = tcp::connect(address, PATIENCE)?;
        let key = PreSharedKey::new([7; 32]);
        Ok(channel::primary(stream, hello(Side::Primary), &key, link, PATIENCE)?)
    }
}

fn hello(side: Side) -> Hello {
    Hello {
        side,
        generation: 1,
        encrypt: false,
        schema: SchemaDigest::of("bench"),
        identity: Identity::builder().build(),
    }
}
