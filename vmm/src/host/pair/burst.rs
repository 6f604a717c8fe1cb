//! Packets that leave together, by one system call.
//!
//! Whoever gets the first of many replies would interrupt a thread that writes them one by one, and ask again by itself
//! instead of together with the others: batches would fall apart. In one system call nobody comes between, where
//! the kernel is not preemptible; and fifty packets take one entry into the kernel, not fifty.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{EnterFlags, IoUring, opcode, types};

use crate::host::leased::{LeaseEnd, Made};
use crate::host::tap::{LONGEST_PACKET, Tap};
use crate::machine::output::Packet;

/// Packets at most. They take half a millisecond, a tenth of what a look at the lease is good for
/// ([`Timing::slack`](crate::role::timing::Timing::slack)).
pub(super) const MOST: usize = 64;

/// Bytes of packets at most; the longest packet fits.
const BYTES: usize = LONGEST_PACKET.next_multiple_of(4096) + (64 << 10);

/// Where one lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    nic: u8,
    start: usize,
    len: usize,
}

/// Packets that are about to leave. Allocates when it is made, and never again.
pub(super) struct Burst {
    /// `None`: there is none any more, and it takes no packets.
    ring: Option<IoUring>,
    taps: Vec<Arc<Tap>>,
    bytes: Box<[u8]>,
    /// Bytes of them that packets take.
    used: usize,
    packets: Vec<Place>,
}

impl std::fmt::Debug for Burst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Burst").field("packets", &self.packets.len()).finish_non_exhaustive()
    }
}

fn room() -> Box<[u8]> {
    vec![0; BYTES].into_boxed_slice()
}

impl Burst {
    /// None yet.
    ///
    /// # Errors
    /// io_uring is not to be had.
    pub(super) fn new(taps: Vec<Arc<Tap>>) -> io::Result<Self> {
        Ok(Self { ring: Some(new_ring()?), taps, bytes: room(), used: 0, packets: Vec::with_capacity(MOST) })
    }

    /// Packets in it.
    pub(super) const fn len(&self) -> usize {
        self.packets.len()
    }

    /// The packets, oldest first, each with its card.
    pub(super) fn packets(&self) -> impl Iterator<Item = (u8, Packet<'_>)> {
        let packet = |place: &Place| {
            Some((place.nic, Packet::from_bytes(&self.bytes[place.start..place.start + place.len])?))
        };
        self.packets.iter().filter_map(packet)
    }

    /// One more. `false`: there is no room.
    pub(super) fn push(&mut self, nic: u8, packet: &Packet<'_>) -> bool {
        let (start, len) = (self.used, packet.len());
        let may = self.ring.is_some() && self.packets.len() < MOST;
        let Some(room) = self.bytes.get_mut(start..start + len).filter(|_| may) else {
            return false;
        };
        packet.copy_to(room);
        self.packets.push(Place { nic, start, len });
        self.used += len;
        true
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.packets.clear();
        self.used = 0;
    }

    /// Lets all of them out, in order, and says when that was, in nanoseconds of the local clock. Those that a tap has no room
    /// for are lost, as on any Ethernet. `None`: the lease has ended, and they stay.
    pub(super) fn write(&mut self, lease: &LeaseEnd) -> Option<u64> {
        let at = match *self.packets.as_slice() {
            // One by itself is quicker without a ring.
            [Place { nic, start, len }] => match self.taps.get(usize::from(nic)) {
                Some(tap) => tap.write_leased(&self.bytes[start..start + len], lease)?,
                None => lease.holds()?,
            },
            _ => self.write_all(lease)?,
        };
        self.clear();
        Some(at)
    }

    fn write_all(&mut self, lease: &LeaseEnd) -> Option<u64> {
        let Some(ring) = &mut self.ring else { return lease.holds() };
        let mut count = 0;
        for packet in &self.packets {
            let Some(tap) = self.taps.get(usize::from(packet.nic)) else { continue };
            let at = self.bytes[packet.start..].as_ptr();
            // Not registered with the ring: that would keep the tap busy for a while after this process was killed.
            let write = opcode::Write::new(types::Fd(tap.as_raw_fd()), at, packet.len as u32).build();
            // SAFETY: the bytes stay where they are until all completions are there. The ring has room for all packets of a burst.
            count += u32::from(unsafe { ring.submission().push(&write) }.is_ok());
        }
        // SAFETY: as above.
        let made = unsafe { lease.submit(ring.as_raw_fd(), count) };
        let (at, submitted) = match made {
            Some(Made { at, result: Ok(submitted) }) => (Some(at), submitted as u32),
            Some(Made { at, result: Err(error) }) => {
                tracing::warn!(%error, "packets were lost");
                (Some(at), 0)
            }
            None => (None, 0),
        };
        let reaped = reap(ring, submitted);
        if let Err(error) = &reaped {
            tracing::warn!(%error, "packets were lost");
            // The kernel may still read them.
            std::mem::forget(std::mem::replace(&mut self.bytes, room()));
        }
        if submitted < count || reaped.is_err() {
            // What is left in it, handed over or done, is not the next ones'.
            self.ring = new_ring()
                .inspect_err(|error| tracing::warn!(%error, "packets wait at the gate from now on"))
                .ok();
        }
        at
    }
}

fn new_ring() -> io::Result<IoUring> {
    IoUring::builder().setup_submit_all().build(MOST as u32)
}

/// Waits until so many writes are done, which they mostly are: a tap takes a packet at once or not at all.
fn reap(ring: &mut IoUring, mut under_way: u32) -> io::Result<()> {
    let wait = EnterFlags::GETEVENTS.bits();
    loop {
        for completion in ring.completion() {
            under_way -= 1;
            if completion.result() < 0 {
                let error = io::Error::from_raw_os_error(-completion.result());
                tracing::debug!(%error, "a packet was lost");
            }
        }
        if under_way == 0 {
            return Ok(());
        }
        // SAFETY: hands nothing to the kernel, and has no argument.
        match unsafe { ring.submitter().enter::<()>(0, under_way, wait, None) } {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {
                return Err(error);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn packet(bytes: &[u8]) -> Packet<'_> {
        Packet::from_bytes(bytes).unwrap()
    }

    #[test]
    fn packets_leave_in_order_each_to_its_card_and_a_full_burst_says_so() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let (other, theirs_too) = UnixDatagram::pair().unwrap();
        for socket in [&theirs, &theirs_too] {
            socket.set_nonblocking(true).unwrap();
        }
        let tap = |socket: UnixDatagram| Arc::new(Tap::stand_in(File::from(OwnedFd::from(socket))));
        let mut burst = Burst::new(vec![tap(ours), tap(other)]).unwrap();
        let mut bytes = [0; 128];
        for packets in [0, 1, 2, 7] {
            for n in 0..packets {
                // There is no third card: what is for it goes nowhere.
                assert!(burst.push(n % 3, &packet(&[n; 60])));
            }
            // Without a lease they stay, and leave once there is one.
            assert!(burst.write(&LeaseEnd::past()).is_none());
            assert_eq!(burst.len(), usize::from(packets));
            assert!(burst.write(&LeaseEnd::never()).is_some());
            assert_eq!(burst.len(), 0);
            for n in (0..packets).filter(|n| n % 3 != 2) {
                let card = [&theirs, &theirs_too][usize::from(n % 3)];
                assert_eq!((card.recv(&mut bytes).unwrap(), bytes[0]), (60, n));
            }
            assert!(theirs.recv(&mut bytes).is_err() && theirs_too.recv(&mut bytes).is_err());
        }
        // With nobody there, packets are lost, and nothing else.
        drop((theirs, theirs_too));
        assert!(burst.push(0, &packet(&[1; 60])) && burst.push(1, &packet(&[2; 60])));
        assert!(burst.write(&LeaseEnd::never()).is_some());

        let pushed = (0..).take_while(|_| burst.push(0, &packet(&[3; 60]))).count();
        assert_eq!((pushed, burst.packets().count()), (MOST, MOST));
        burst.clear();
        assert!(burst.push(0, &packet(&vec![4; LONGEST_PACKET])));
        let room = burst.bytes.as_ptr();
        while burst.push(0, &packet(&[5; 9_000])) {}
        assert_eq!(burst.bytes.as_ptr(), room, "no allocation");
    }
}
