//! Where outputs go when nobody has to wait for them: straight out.

use std::sync::Arc;

use crate::host::io::disk::Disks;
use crate::host::io::terminal::Terminal;
use crate::host::tap::Tap;
use crate::machine::output::{DiskRequest, Notice, Outputs, Packet};
use crate::machine::virtio::net::offload::Offloads;

/// Sends each output at once.
#[derive(Debug)]
pub struct OpenOutputs {
    /// One tap per network device.
    pub taps: Vec<Arc<Tap>>,
    /// The disk thread.
    pub disks: Disks,
    /// Serial line and console.
    pub terminal: Terminal,
}

impl Outputs for OpenOutputs {
    fn packet(&mut self, nic: u8, packet: &Packet<'_>) {
        if let Some(tap) = self.taps.get(usize::from(nic))
            && let Err(error) = tap.send(packet)
        {
            tracing::debug!(nic, %error, "a packet was lost");
        }
    }

    fn offloads(&mut self, nic: u8, to_guest: Offloads) {
        if let Some(tap) = self.taps.get(usize::from(nic)) {
            tap.follow(to_guest);
        }
    }

    fn disk(&mut self, request: DiskRequest<'_>) {
        if !self.disks.issue(&request) {
            tracing::error!(disk = request.disk, tag = request.tag, "no room for a disk request");
        }
    }

    fn serial(&mut self, byte: u8) {
        self.terminal.write(&[byte]);
    }

    fn console(&mut self, bytes: &[u8]) {
        self.terminal.write(bytes);
    }

    fn notice(&mut self, notice: Notice) {
        report(notice);
    }
}

/// Tells the operator what the guest did.
pub fn report(notice: Notice) {
    match notice {
        Notice::UnclaimedPort { port, write } => {
            tracing::debug!(port = format_args!("{port:#x}"), write, "no device at this port");
        }
        Notice::UnclaimedAddress { page, write } => {
            tracing::debug!(address = format_args!("{:#x}", page << 12), write, "no device at this address");
        }
        Notice::UnknownMsr { index } => {
            tracing::debug!(
                msr = format_args!("{index:#x}"),
                "the guest touched an MSR that it does not have"
            );
        }
    }
}
