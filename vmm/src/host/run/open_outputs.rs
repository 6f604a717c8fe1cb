//! Where outputs go when nobody has to wait for them: straight out.

use crate::host::burst::Burst;
use crate::host::io::disk::Disks;
use crate::host::io::terminal::Terminal;
use crate::machine::output::{DiskRequest, Notice, Outputs};

/// Sends outputs when the guest has made all of an exit's.
#[derive(Debug)]
pub(crate) struct OpenOutputs {
    /// The packets of this exit.
    pub burst: Burst,
    /// The disk thread.
    pub disks: Disks,
    /// Serial line and console.
    pub terminal: Terminal,
}

impl Outputs for OpenOutputs {
    fn packet(&mut self, nic: u8, frame: &[u8]) {
        if !self.burst.push(nic, frame) {
            self.burst.write();
            // The longest frame fits into an empty burst.
            let _ = self.burst.push(nic, frame);
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
