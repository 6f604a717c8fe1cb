//! A bare ping-pong of one-sided writes: what the hardware can do, and whether it does it.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::ptr;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::conn::{Cause, Connection};
use super::verbs::{BATCH, Done, Side as Queue, Write};
use super::{ACK_RING, RdmaConfig, setup};
use crate::channel::OpenError;
use crate::codec::SchemaDigest;
use crate::handshake::{self, Hello, Identity, PreSharedKey, Side};
use crate::transport::buffer::SendBuffer;
use crate::transport::{TransportError, tcp};

/// Looks at the memory between two looks at the clock and the queue.
const LOOKS: u32 = 256;
/// Round trips of [`loopback`].
const TRIPS: u32 = 64;

/// One end of a connection on which both sides write into each other's memory and look there for the
/// answer, as `ib_write_lat` does: no receive request, no event, no copy.
pub struct PingPong {
    conn: Connection,
    message: Vec<u8>,
    patience: Duration,
    // Registered by the connection: kept as long as that.
    _buffer: SendBuffer,
}

impl std::fmt::Debug for PingPong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PingPong").field("len", &self.message.len()).finish_non_exhaustive()
    }
}

impl PingPong {
    /// Shakes hands on the stream and connects, for messages of `len` bytes, 1 to 512.
    ///
    /// # Errors
    /// No handshake, no RDMA connection, or messages that the device cannot send inline.
    pub fn open(
        mut stream: TcpStream,
        side: Side,
        key: &PreSharedKey,
        len: usize,
        patience: Duration,
    ) -> Result<Self, OpenError> {
        let identity = Identity::builder().part("ping-pong", "", b"").build();
        let hello =
            Hello { side, generation: 1, encrypt: false, schema: SchemaDigest::of("ping-pong"), identity };
        let mut agreed = handshake::run(&mut stream, hello, key, patience)?;
        let buffer = SendBuffer::new(4096);
        let config = RdmaConfig { patience, ..RdmaConfig::default() };
        let conn = setup::connect(&mut stream, &mut agreed.keys, side, ACK_RING, &buffer, &config)?;
        if len == 0 || len > conn.queues.inline() {
            return Err(TransportError::Nonsense("a ping-pong's message is 1 to 512 bytes").into());
        }
        Ok(Self { conn, message: vec![0; len], patience, _buffer: buffer })
    }

    /// One message there and one back.
    ///
    /// # Errors
    /// The connection broke, or no answer came in time.
    pub fn trip(&mut self) -> Result<Duration, TransportError> {
        let start = Instant::now();
        self.next();
        self.write()?;
        self.wait()?;
        Ok(start.elapsed())
    }

    /// Answers one message.
    ///
    /// # Errors
    /// As [`Self::trip`].
    pub fn echo(&mut self) -> Result<(), TransportError> {
        self.next();
        self.wait()?;
        self.write()
    }

    /// The last byte of a message counts; it is never that of the message before.
    fn next(&mut self) {
        if let Some(last) = self.message.last_mut() {
            *last = last.wrapping_add(1);
        }
    }

    fn write(&self) -> Result<(), TransportError> {
        self.reap()?;
        let remote = self.conn.remote();
        let write = Write {
            from: self.message.as_ptr(),
            len: self.message.len(),
            local_key: 0,
            to: remote.ring,
            remote_key: remote.ring_key,
            immediate: None,
        };
        self.conn.queues.post(&[write]).map_err(TransportError::io("write to the peer"))
    }

    fn reap(&self) -> Result<(), TransportError> {
        let mut done = [Done { status: 0, immediate: None }; BATCH];
        let count = self.conn.queues.poll(Queue::Send, &mut done);
        let count = count.map_err(TransportError::io("look for RDMA completions"))?;
        match done[..count].iter().find(|done| done.status != 0) {
            Some(done) => Err(Cause::Status(Queue::Send, done.status).into()),
            None => Ok(()),
        }
    }

    fn wait(&self) -> Result<(), TransportError> {
        let last = self.message.len() - 1;
        let deadline = Instant::now() + self.patience;
        loop {
            for _ in 0..LOOKS {
                // SAFETY: within the ring, which lives as long as the connection; the device writes it.
                if unsafe { ptr::read_volatile(self.conn.ring.as_ptr().add(last)) } == self.message[last] {
                    fence(Ordering::Acquire);
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            self.reap()?;
            if let Some(cause) = self.conn.happened() {
                return Err(cause.into());
            }
            if Instant::now() >= deadline {
                return Err(TransportError::io("hear from the peer")(std::io::ErrorKind::TimedOut.into()));
            }
            std::thread::yield_now();
        }
    }
}

/// Connects an RDMA device with itself, over one of its own addresses, and says how long a round trip of 64
/// bytes takes: the median of some.
///
/// # Errors
/// No such address here, no RDMA device behind it, or it does not work within `patience`.
pub fn loopback(address: IpAddr, patience: Duration) -> Result<Duration, OpenError> {
    let binding = TransportError::io("listen on the device's address");
    let listener = TcpListener::bind((address, 0)).map_err(binding)?;
    let here = listener.local_addr().map_err(TransportError::io("listen on the device's address"))?;
    // Both ends are this process: the key need not be secret.
    let key = PreSharedKey::new([0x70; 32]);
    let stream = tcp::connect(here, patience)?;
    let (accepted, _) = listener.accept().map_err(TransportError::io("accept a connection"))?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let mut end = PingPong::open(accepted, Side::Backup, &key, 64, patience)?;
            (0..TRIPS).try_for_each(|_| end.echo())?;
            // The peer has still to see the last one.
            std::thread::sleep(Duration::from_millis(20));
            Ok::<(), OpenError>(())
        });
        let trips = || {
            let mut end = PingPong::open(stream, Side::Primary, &key, 64, patience)?;
            let mut trips = (0..TRIPS).map(|_| end.trip()).collect::<Result<Vec<_>, _>>()?;
            trips.sort_unstable();
            Ok::<_, OpenError>(trips[trips.len() / 2])
        };
        let median = trips();
        match echo.join() {
            Ok(echoed) => median.and_then(|median| echoed.map(|()| median)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
