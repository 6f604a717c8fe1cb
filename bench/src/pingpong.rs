//! A bare ping-pong over io_uring and TCP, each side one system call per message: send and wait for the
//! answer.

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::pin;

/// One message there, one back, and nothing else: what a channel's round trip is measured against.
pub(crate) struct PingPong {
    side: Side,
}

impl PingPong {
    /// Over the two ends of a connection; the answers come from a thread on a core of its own, which ends
    /// with this.
    pub(crate) fn open(
        client: TcpStream,
        echo: TcpStream,
        echo_core: usize,
        there: usize,
        back: usize,
    ) -> Result<Self> {
        std::thread::spawn(move || {
            let _pinned = pin::to_core(echo_core)?;
            let mut side = Side::new(echo, back, there)?;
            side.receive(false)?;
            loop {
                side.receive(true)?;
            }
            #[allow(unreachable_code)]
            anyhow::Ok(())
        });
        Ok(Self { side: Side::new(client, there, back)? })
    }

    /// One round trip.
    pub(crate) fn trip(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.side.receive(true)?;
        Ok(start.elapsed())
    }
}

struct Side {
    ring: IoUring,
    _stream: TcpStream,
    send: Vec<u8>,
    receive: Vec<u8>,
}

impl Side {
    fn new(stream: TcpStream, send: usize, receive: usize) -> Result<Self> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8)?;
        ring.submitter().register_files(&[stream.as_raw_fd()])?;
        Ok(Self { ring, _stream: stream, send: vec![1; send], receive: vec![0; receive] })
    }

    /// Sends, if asked to, and waits for the answer, in one system call.
    fn receive(&mut self, send_first: bool) -> Result<()> {
        let (out, out_len) = (self.send.as_ptr(), self.send.len() as u32);
        let (into, into_len) = (self.receive.as_mut_ptr(), self.receive.len() as u32);
        let send =
            opcode::Send::new(types::Fixed(0), out, out_len).build().flags(squeue::Flags::SKIP_SUCCESS);
        let receive = opcode::Recv::new(types::Fixed(0), into, into_len).flags(libc::MSG_WAITALL).build();
        if send_first {
            // SAFETY: the buffers outlive the operations, which this call waits for.
            unsafe { self.ring.submission().push(&send.user_data(1)) }?;
        }
        // SAFETY: as above.
        unsafe { self.ring.submission().push(&receive.user_data(2)) }?;
        self.ring.submit_and_wait(1)?;
        let done = self.ring.completion().next().context("no completion")?;
        ensure!(done.user_data() == 2 && done.result() == into_len as i32, "the ping-pong's peer is gone");
        Ok(())
    }
}
