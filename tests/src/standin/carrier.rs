//! Frames between a side's tap and the room.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::Context;
use tandem_vmm::host::config::MacAddress;
use tandem_vmm::host::tap::{LONGEST_PACKET, Tap, rarp_announcement};
use tandem_vmm::machine::virtio::net::offload::{COMPLETE, HEADER_LEN};

use super::room::DOOR;
use crate::lab::{frames, move_this_thread_to};

pub(super) struct Carrier {
    tap: Tap,
    door: OwnedFd,
    /// A packet of the tap: the header of a frame that nothing is left to do with, and the frame.
    buffer: Vec<u8>,
}

impl Carrier {
    pub(super) fn open(tap: &str, room: &Path) -> anyhow::Result<Self> {
        let namespace = File::open(room).context("cannot open the room")?;
        let door = std::thread::spawn(move || -> io::Result<OwnedFd> {
            move_this_thread_to(namespace.as_raw_fd())?;
            frames::packet_socket(DOOR)
        });
        let door = door.join().map_err(|_| anyhow::anyhow!("the thread in the room panicked"))?;
        let door = door.context("cannot get through the room's door")?;
        Ok(Self { tap: Tap::open(tap)?, door, buffer: vec![0; LONGEST_PACKET] })
    }

    pub(super) fn descriptors(&self) -> [RawFd; 2] {
        [self.tap.as_raw_fd(), self.door.as_raw_fd()]
    }

    /// Carries what waits on either side; `entitled` is asked before each frame, which is dropped if not.
    pub(super) fn carry(&mut self, mut entitled: impl FnMut() -> bool) -> io::Result<()> {
        while let Some(len) = self.tap.read_packet(&mut self.buffer)? {
            if entitled() {
                self.to_room(len)?;
            }
        }
        self.buffer[..HEADER_LEN].copy_from_slice(&COMPLETE);
        while let Some((len, direction)) = frames::receive(&self.door, &mut self.buffer[HEADER_LEN..])? {
            // What we sent ourselves is seen again, on its way out.
            if direction != libc::PACKET_OUTGOING && entitled() {
                self.tap.write_packet(&self.buffer[..HEADER_LEN + len])?;
            }
        }
        Ok(())
    }

    fn to_room(&self, len: usize) -> io::Result<()> {
        let frame = &self.buffer[HEADER_LEN.min(len)..len];
        // SAFETY: the frame is valid for its length.
        let sent = unsafe { libc::send(self.door.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        // No room in the socket: the frame is lost, as on any Ethernet.
        let lost = [Some(libc::EAGAIN), Some(libc::ENOBUFS)];
        match io::Error::last_os_error() {
            error if sent < 0 && !lost.contains(&error.raw_os_error()) => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn announce(&self, mac: MacAddress) -> io::Result<()> {
        self.tap.write_packet(&rarp_announcement(mac)).map(drop)
    }
}
