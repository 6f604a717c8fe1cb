//! A connection's queues, and memory that the device may use: the calls of libibverbs.

use rdma_sys as sys;
use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};

use super::cm::{Id, check, nonblocking};
use crate::transport::TransportError;

/// Completions taken from a queue at a time.
pub(super) const BATCH: usize = 16;
/// Bytes that a request should carry in itself; devices that have less get less.
const INLINE: [u32; 4] = [512, 256, 64, 32];

/// Memory for the device: mapped, zeroed, present, in huge pages where there are some.
pub(super) struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory with one owner; shared access is by raw pointers and atomics only.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// At least `len` bytes.
    pub(super) fn new(len: usize) -> Result<Self, TransportError> {
        const HUGE: usize = 2 << 20;
        let plain = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let map = |len, flags| {
            // SAFETY: a new anonymous mapping; the result is checked.
            let start =
                unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
            if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast::<u8>()) }
        };
        if len >= HUGE {
            let len = len.next_multiple_of(HUGE);
            if let Some(start) = map(len, plain | libc::MAP_HUGETLB) {
                return Ok(Self { start, len });
            }
        }
        let len = len.max(1).next_multiple_of(4096);
        let start = map(len, plain)
            .ok_or_else(|| TransportError::io("get memory for RDMA")(io::Error::last_os_error()))?;
        Ok(Self { start, len })
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; whoever registered it has taken that back.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A registration of memory with the device, for one connection. Its keys die with it.
pub(super) struct Region(NonNull<sys::ibv_mr>);

impl Region {
    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: a live registration.
        unsafe { self.0.as_ref().lkey }
    }

    pub(super) fn remote_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.0.as_ref().rkey }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: registered once, and the queue pair that used it is gone.
        unsafe { sys::ibv_dereg_mr(self.0.as_ptr()) };
    }
}

/// One write into the peer's memory.
#[derive(Clone, Copy)]
pub(super) struct Write {
    pub(super) from: *const u8,
    pub(super) len: usize,
    pub(super) local_key: u32,
    pub(super) to: u64,
    pub(super) remote_key: u32,
    /// Tells the peer, and takes one of its receive requests.
    pub(super) immediate: Option<u32>,
}

/// A completion.
#[derive(Clone, Copy)]
pub(super) struct Done {
    /// An `ibv_wc_status`; 0 is success.
    pub(super) status: u32,
    /// The immediate value of a peer's write.
    pub(super) immediate: Option<u32>,
}

/// Which of the two completion queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// This side's own writes.
    Send,
    /// The peer's.
    Receive,
}

/// A queue pair with its completion queues in a protection domain of its own, so that its keys are
/// good for this one connection only.
pub(super) struct Queues {
    id: Id,
    domain: *mut sys::ibv_pd,
    completions: *mut sys::ibv_comp_channel,
    queues: [*mut sys::ibv_cq; 2],
    /// Dropped by hand, between the queue pair and the domain.
    regions: Vec<Region>,
    inline: usize,
}

// SAFETY: libibverbs' calls are thread-safe; nothing here is bound to a thread.
unsafe impl Send for Queues {}
// SAFETY: as above.
unsafe impl Sync for Queues {}

impl Queues {
    /// For a resolved or requested connection: so many writes and receive requests at a time.
    pub(super) fn new(id: Id, sends: u32, receives: u32) -> Result<Self, TransportError> {
        let context = id.context()?;
        let mut this = Self {
            id,
            domain: ptr::null_mut(),
            completions: ptr::null_mut(),
            queues: [ptr::null_mut(); 2],
            regions: Vec::new(),
            inline: 0,
        };
        // SAFETY: the context lives as long as the id; results are checked before they are used, and
        // what was made so far is taken down when `this` is dropped.
        unsafe {
            this.domain = there("allocate a protection domain", sys::ibv_alloc_pd(context))?;
            this.completions = there("make a completion channel", sys::ibv_create_comp_channel(context))?;
            for (queue, depth) in this.queues.iter_mut().zip([sends, receives]) {
                let made =
                    sys::ibv_create_cq(context, depth as i32 + 1, ptr::null_mut(), this.completions, 0);
                *queue = there("make a completion queue", made)?;
            }
        }
        nonblocking(this.fd())?;
        this.make_pair(sends, receives)?;
        Ok(this)
    }

    fn make_pair(&mut self, sends: u32, receives: u32) -> Result<(), TransportError> {
        let mut failed = Ok(());
        for inline in INLINE {
            // SAFETY: all zeros is a valid value: null pointers and numbers.
            let mut wanted: sys::ibv_qp_init_attr = unsafe { std::mem::zeroed() };
            wanted.send_cq = self.queues[0];
            wanted.recv_cq = self.queues[1];
            wanted.qp_type = sys::ibv_qp_type::IBV_QPT_RC;
            wanted.sq_sig_all = 1;
            wanted.cap = sys::ibv_qp_cap {
                max_send_wr: sends,
                max_recv_wr: receives,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: inline,
            };
            // SAFETY: live objects of one context.
            let made = unsafe { sys::rdma_create_qp(self.id.as_ptr(), self.domain, &raw mut wanted) };
            failed = check("make an RDMA queue pair", made);
            if failed.is_ok() {
                // What was asked for, even if the device has more: known to be enough for a credit.
                self.inline = inline as usize;
                break;
            }
        }
        failed
    }

    /// Registers memory; for the peer to write, or for own writes to be read from.
    ///
    /// # Safety
    /// The memory is valid and stays so until `self` is dropped.
    pub(super) unsafe fn register(
        &mut self,
        start: *mut u8,
        len: usize,
        remote: bool,
    ) -> Result<&Region, TransportError> {
        use sys::ibv_access_flags as access;
        let mut flags = access::IBV_ACCESS_LOCAL_WRITE.0;
        if remote {
            flags |= access::IBV_ACCESS_REMOTE_WRITE.0;
        }
        // SAFETY: a live domain; the caller answers for the memory.
        let made = unsafe { sys::ibv_reg_mr(self.domain, start.cast(), len, flags as i32) };
        let made = there("register memory with the RDMA device (check ulimit -l)", made)?;
        let region = NonNull::new(made).ok_or(TransportError::Closed)?;
        let place = self.regions.len();
        self.regions.push(Region(region));
        Ok(&self.regions[place])
    }

    pub(super) const fn id(&self) -> &Id {
        &self.id
    }

    /// Bytes that a write carries in itself.
    pub(super) const fn inline(&self) -> usize {
        self.inline
    }

    /// Readable after a completion that was asked for with [`Self::arm`].
    pub(super) fn fd(&self) -> RawFd {
        // SAFETY: a live channel.
        unsafe { (*self.completions).fd }
    }

    /// Posts writes, in order, with one ring of the doorbell. Those of at most [`Self::inline`] bytes
    /// are copied now; the others' bytes must stay until their completion.
    pub(super) fn post(&self, writes: &[Write]) -> io::Result<()> {
        // SAFETY: all zeros is a valid value of both.
        let (mut requests, mut pieces): ([sys::ibv_send_wr; BATCH], [sys::ibv_sge; BATCH]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let count = writes.len().min(BATCH);
        debug_assert_eq!(count, writes.len());
        for n in (0..count).rev() {
            let next = if n + 1 < count { &raw mut requests[n + 1] } else { ptr::null_mut() };
            let write = &writes[n];
            pieces[n] =
                sys::ibv_sge { addr: write.from as u64, length: write.len as u32, lkey: write.local_key };
            let request = &mut requests[n];
            request.next = next;
            if write.len > 0 {
                request.sg_list = &raw mut pieces[n];
                request.num_sge = 1;
            }
            if write.len <= self.inline {
                request.send_flags = sys::ibv_send_flags::IBV_SEND_INLINE.0;
            }
            request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
            if let Some(immediate) = write.immediate {
                request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
                request.imm_data_invalidated_rkey_union.imm_data = immediate.to_be();
            }
            request.wr.rdma = sys::rdma_t { remote_addr: write.to, rkey: write.remote_key };
        }
        let mut bad = ptr::null_mut();
        // SAFETY: a live queue pair; the chain and its pieces live until the call returns.
        let result = unsafe { sys::ibv_post_send(self.pair(), requests.as_mut_ptr(), &raw mut bad) };
        if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
    }

    /// Posts receive requests, which hold no memory: they count the peer's messages.
    pub(super) fn post_receives(&self, mut count: usize) -> io::Result<()> {
        // SAFETY: all zeros is a valid value.
        let mut requests: [sys::ibv_recv_wr; BATCH] = unsafe { std::mem::zeroed() };
        while count > 0 {
            let step = count.min(BATCH);
            for n in 0..step {
                requests[n].next = if n + 1 < step { &raw mut requests[n + 1] } else { ptr::null_mut() };
            }
            let mut bad = ptr::null_mut();
            // SAFETY: a live queue pair; the chain lives until the call returns.
            let result = unsafe { sys::ibv_post_recv(self.pair(), requests.as_mut_ptr(), &raw mut bad) };
            if result != 0 {
                return Err(io::Error::from_raw_os_error(result));
            }
            count -= step;
        }
        Ok(())
    }

    /// Takes completions, without a system call; how many.
    pub(super) fn poll(&self, side: Side, done: &mut [Done; BATCH]) -> io::Result<usize> {
        // SAFETY: all zeros is a valid value.
        let mut found: [sys::ibv_wc; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: a live queue, and room for as many as are asked for.
        let count = unsafe { sys::ibv_poll_cq(self.queue(side), BATCH as i32, found.as_mut_ptr()) };
        let count = usize::try_from(count).map_err(|_| io::Error::from(io::ErrorKind::Other))?;
        for (done, found) in done.iter_mut().zip(&found[..count]) {
            let with = found.wc_flags & sys::ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0
                && found.opcode == sys::ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM;
            *done = Done {
                status: found.status,
                // SAFETY: the flag says which of the two it is, and both are numbers.
                immediate: (found.status == 0 && with)
                    .then(|| u32::from_be(unsafe { found.imm_data_invalidated_rkey_union.imm_data })),
            };
        }
        Ok(count)
    }

    /// The next completion of this queue makes the descriptor readable.
    pub(super) fn arm(&self, side: Side) -> io::Result<()> {
        // SAFETY: a live queue.
        let result = unsafe { sys::ibv_req_notify_cq(self.queue(side), 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result.abs())) }
    }

    /// Takes one notification, if there is one: of which queue.
    pub(super) fn notification(&self) -> Option<Side> {
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a live, non-blocking channel, and room for two pointers.
        if unsafe { sys::ibv_get_cq_event(self.completions, &raw mut queue, &raw mut context) } != 0 {
            return None;
        }
        // SAFETY: a live queue with one event not acknowledged.
        unsafe { sys::ibv_ack_cq_events(queue, 1) };
        Some(if queue == self.queue(Side::Send) { Side::Send } else { Side::Receive })
    }

    const fn queue(&self, side: Side) -> *mut sys::ibv_cq {
        self.queues[side as usize]
    }

    pub(super) fn pair(&self) -> *mut sys::ibv_qp {
        // SAFETY: a live id; `new` made the queue pair.
        unsafe { (*self.id.as_ptr()).qp }
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        self.id.disconnect();
        // SAFETY: each is made once and taken down once, users before what they use.
        unsafe {
            if !self.pair().is_null() {
                sys::rdma_destroy_qp(self.id.as_ptr());
            }
            self.regions.clear();
            for queue in self.queues.iter().filter(|queue| !queue.is_null()) {
                sys::ibv_destroy_cq(*queue);
            }
            if !self.completions.is_null() {
                sys::ibv_destroy_comp_channel(self.completions);
            }
            if !self.domain.is_null() {
                sys::ibv_dealloc_pd(self.domain);
            }
        }
    }
}

fn there<T>(doing: &'static str, made: *mut T) -> Result<*mut T, TransportError> {
    if made.is_null() { Err(TransportError::io(doing)(io::Error::last_os_error())) } else { Ok(made) }
}

/// What a completion's status means.
pub(super) fn status_text(status: u32) -> String {
    // SAFETY: any number gets a static text.
    let text = unsafe { CStr::from_ptr(sys::ibv_wc_status_str(status)) };
    text.to_string_lossy().into_owned()
}
