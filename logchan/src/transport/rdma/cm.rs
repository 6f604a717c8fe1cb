//! rdma_cm: addresses to paths, and the two sides' queue pairs to one connection.

use rdma_sys as sys;
use std::ffi::CStr;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use crate::transport::TransportError;
use sys::rdma_cm_event_type as kind;

/// rdma/rdma_cma.h: RDMA_OPTION_ID and RDMA_OPTION_ID_ACK_TIMEOUT.
const OPTION_ID: i32 = 0;
const OPTION_ACK_TIMEOUT: i32 = 3;
/// 4.096 us * 2^15 = 134 ms until a packet without acknowledgement is sent again.
const ACK_TIMEOUT: u8 = 15;
/// Sent again so often, then the connection is broken: about a second in all. Not 7, which soft RoCE takes for ever.
const RETRIES: u8 = 6;
/// The peer's receive requests are posted before they are counted on, so this is for damage only.
const NOT_READY_RETRIES: u8 = 1;

/// What says that something happened to a connection.
pub(super) struct Events(NonNull<sys::rdma_event_channel>);

// SAFETY: librdmacm's calls on a channel are thread-safe.
unsafe impl Send for Events {}
// SAFETY: as above.
unsafe impl Sync for Events {}

impl Events {
    pub(super) fn open() -> Result<Self, TransportError> {
        // SAFETY: no preconditions; the result is checked.
        let channel = unsafe { sys::rdma_create_event_channel() };
        let channel = NonNull::new(channel).ok_or_else(|| {
            TransportError::io("use RDMA (no device, or the kernel module rdma_ucm is not loaded)")(
                io::Error::last_os_error(),
            )
        })?;
        let events = Self(channel);
        nonblocking(events.fd())?;
        Ok(events)
    }

    /// Readable when there is an event.
    pub(super) fn fd(&self) -> RawFd {
        // SAFETY: a live channel.
        unsafe { self.0.as_ref().fd }
    }

    /// The next event, if there is one already.
    pub(super) fn next(&self) -> Result<Option<Event<'_>>, TransportError> {
        let mut event = ptr::null_mut();
        // SAFETY: a live channel, and room for one pointer.
        if unsafe { sys::rdma_get_cm_event(self.0.as_ptr(), &raw mut event) } == 0 {
            return Ok(NonNull::new(event).map(|event| Event(event, PhantomData)));
        }
        let error = io::Error::last_os_error();
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
            return Ok(None);
        }
        Err(TransportError::io("hear of the RDMA connection")(error))
    }

    /// Waits for an event.
    fn wait(&self, deadline: Instant) -> Result<Event<'_>, TransportError> {
        loop {
            if let Some(event) = self.next()? {
                return Ok(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TransportError::io("set up the RDMA connection")(io::ErrorKind::TimedOut.into()));
            }
            let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid entry.
            unsafe { libc::poll(&raw mut poll, 1, left.as_millis().clamp(1, 1000) as i32) };
        }
    }

    /// Waits for this event; any other is a failure.
    pub(super) fn expect(&self, expected: kind::Type, deadline: Instant) -> Result<(), TransportError> {
        let event = self.wait(deadline)?;
        if event.kind() == expected { Ok(()) } else { Err(event.failure()) }
    }

    /// Waits for a connection request that carries these bytes; others are turned away.
    pub(super) fn request(&self, token: &[u8], deadline: Instant) -> Result<Id, TransportError> {
        loop {
            let event = self.wait(deadline)?;
            if event.kind() != kind::RDMA_CM_EVENT_CONNECT_REQUEST {
                return Err(event.failure());
            }
            // SAFETY: a connection request brings an id of its own, which is nobody else's.
            let id = Id(unsafe { event.0.as_ref().id });
            if event.private_data().starts_with(token) {
                return Ok(id);
            }
            tracing::warn!("an RDMA connection without this session's token was turned away");
            // SAFETY: a live id with an open request.
            unsafe { sys::rdma_reject(id.0, ptr::null(), 0) };
            // The event before its id: destroying an id waits for its events.
            drop(event);
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // SAFETY: all ids of this channel are destroyed before it.
        unsafe { sys::rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

/// One event, given back when dropped.
pub(super) struct Event<'a>(NonNull<sys::rdma_cm_event>, PhantomData<&'a Events>);

impl Event<'_> {
    pub(super) fn kind(&self) -> kind::Type {
        // SAFETY: a live event.
        unsafe { self.0.as_ref().event }
    }

    fn private_data(&self) -> &[u8] {
        // SAFETY: a live event about a connection; librdmacm keeps the bytes until it is given back.
        unsafe {
            let parameters = &self.0.as_ref().param.conn;
            if parameters.private_data.is_null() {
                return &[];
            }
            std::slice::from_raw_parts(
                parameters.private_data.cast(),
                usize::from(parameters.private_data_len),
            )
        }
    }

    fn failure(&self) -> TransportError {
        // SAFETY: a live event; the text is static.
        let (name, status) =
            unsafe { (CStr::from_ptr(sys::rdma_event_str(self.kind())), self.0.as_ref().status) };
        TransportError::Rdma { doing: "connect", why: format!("{} ({status})", name.to_string_lossy()) }
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: given back once.
        unsafe { sys::rdma_ack_cm_event(self.0.as_ptr()) };
    }
}

/// One end of a connection, or something that listens. To be dropped after its queue pair.
pub(super) struct Id(*mut sys::rdma_cm_id);

// SAFETY: librdmacm's calls on an id are thread-safe.
unsafe impl Send for Id {}
// SAFETY: as above.
unsafe impl Sync for Id {}

impl Id {
    fn new(events: &Events) -> Result<Self, TransportError> {
        let mut id = ptr::null_mut();
        // SAFETY: a live channel, and room for one pointer.
        let made = unsafe {
            sys::rdma_create_id(
                events.0.as_ptr(),
                &raw mut id,
                ptr::null_mut(),
                sys::rdma_port_space::RDMA_PS_TCP,
            )
        };
        check("make an RDMA connection", made)?;
        Ok(Self(id))
    }

    /// Listens on an address; port 0 picks one.
    pub(super) fn listen(events: &Events, on: SocketAddr) -> Result<(Self, u16), TransportError> {
        let id = Self::new(events)?;
        let mut address = Address::new(on);
        // SAFETY: a live id and an address that outlives the call.
        check("bind the RDMA address", unsafe { sys::rdma_bind_addr(id.0, address.as_mut_ptr()) })?;
        // SAFETY: a live, bound id.
        check("listen for RDMA connections", unsafe { sys::rdma_listen(id.0, 8) })?;
        // SAFETY: a live, bound id.
        let port = u16::from_be(unsafe { sys::rdma_get_src_port(id.0) });
        Ok((id, port))
    }

    /// Finds the device and the path from an address to another.
    pub(super) fn resolve(
        events: &Events,
        from: SocketAddr,
        to: SocketAddr,
        deadline: Instant,
    ) -> Result<Self, TransportError> {
        let id = Self::new(events)?;
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let left = left.as_millis().min(60_000) as i32;
        let (mut source, mut target) = (Address::new(from), Address::new(to));
        // SAFETY: a live id and addresses that outlive the call.
        let started = unsafe { sys::rdma_resolve_addr(id.0, source.as_mut_ptr(), target.as_mut_ptr(), left) };
        check("find an RDMA device for the address", started)?;
        events.expect(kind::RDMA_CM_EVENT_ADDR_RESOLVED, deadline)?;
        id.set_ack_timeout();
        // SAFETY: a live id with a resolved address.
        check("find the RDMA path", unsafe { sys::rdma_resolve_route(id.0, left) })?;
        events.expect(kind::RDMA_CM_EVENT_ROUTE_RESOLVED, deadline)?;
        Ok(id)
    }

    /// Connects a resolved id that has a queue pair; the bytes go along with the request.
    pub(super) fn connect(
        &self,
        events: &Events,
        token: &[u8],
        deadline: Instant,
    ) -> Result<(), TransportError> {
        let mut parameters = parameters(token);
        // SAFETY: a live id with a path and a queue pair; the parameters outlive the call.
        check("connect by RDMA", unsafe { sys::rdma_connect(self.0, &raw mut parameters) })?;
        events.expect(kind::RDMA_CM_EVENT_ESTABLISHED, deadline)
    }

    /// Accepts a request, once the id has a queue pair.
    pub(super) fn accept(&self, events: &Events, deadline: Instant) -> Result<(), TransportError> {
        self.set_ack_timeout();
        let mut parameters = parameters(&[]);
        // SAFETY: a live id with an open request and a queue pair; the parameters outlive the call.
        check("accept by RDMA", unsafe { sys::rdma_accept(self.0, &raw mut parameters) })?;
        events.expect(kind::RDMA_CM_EVENT_ESTABLISHED, deadline)
    }

    /// Stops both directions: the queue pair refuses the peer from now on, and the peer hears of it.
    pub(super) fn disconnect(&self) {
        // SAFETY: a live id. It fails only if there is no connection (any more).
        unsafe { sys::rdma_disconnect(self.0) };
    }

    /// How long a packet waits for its acknowledgement; kernels that cannot be told choose themselves.
    fn set_ack_timeout(&self) {
        let mut value = ACK_TIMEOUT;
        // SAFETY: a live id, and one readable byte.
        unsafe { sys::rdma_set_option(self.0, OPTION_ID, OPTION_ACK_TIMEOUT, (&raw mut value).cast(), 1) };
    }

    pub(super) fn as_ptr(&self) -> *mut sys::rdma_cm_id {
        self.0
    }

    pub(super) fn context(&self) -> Result<*mut sys::ibv_context, TransportError> {
        // SAFETY: a live id.
        let context = unsafe { (*self.0).verbs };
        if context.is_null() {
            return Err(TransportError::io("find an RDMA device for the address")(
                io::ErrorKind::NotFound.into(),
            ));
        }
        Ok(context)
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: destroyed once; its events are given back, its queue pair is gone.
        unsafe { sys::rdma_destroy_id(self.0) };
    }
}

fn parameters(private_data: &[u8]) -> sys::rdma_conn_param {
    sys::rdma_conn_param {
        private_data: if private_data.is_empty() { ptr::null() } else { private_data.as_ptr().cast() },
        private_data_len: private_data.len() as u8,
        // Nobody reads from anybody's memory here.
        responder_resources: 0,
        initiator_depth: 0,
        flow_control: 1,
        retry_count: RETRIES,
        rnr_retry_count: NOT_READY_RETRIES,
        srq: 0,
        qp_num: 0,
    }
}

/// A socket address as C wants it.
struct Address(libc::sockaddr_storage);

impl Address {
    fn new(address: SocketAddr) -> Self {
        // SAFETY: all zeros is a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        match address {
            SocketAddr::V4(address) => {
                let in4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage holds, and is aligned for, every socket address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(in4) };
            }
            SocketAddr::V6(address) => {
                let in6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(in6) };
            }
        }
        Self(storage)
    }

    fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.0).cast()
    }
}

/// A call of librdmacm: -1 and errno, or 0.
pub(super) fn check(doing: &'static str, result: i32) -> Result<(), TransportError> {
    if result == 0 { Ok(()) } else { Err(TransportError::io(doing)(io::Error::last_os_error())) }
}

/// Makes reads from a descriptor return instead of wait.
pub(super) fn nonblocking(fd: RawFd) -> Result<(), TransportError> {
    // SAFETY: plain calls on an open descriptor.
    let done = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    check("make an RDMA event descriptor non-blocking", done.min(0))
}
