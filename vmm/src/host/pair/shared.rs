//! What the two threads of a side share.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::marks::Marks;
use crate::host::leased::LeaseEnd;
use crate::host::lock;
use crate::host::vcpu::counters::SharedCounters;
use crate::host::vcpu::inputs::VcpuBell;
use crate::role::event::Divergence;

/// What the side thread wants of the vCPU thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Not yet: wait.
    Wait,
    /// Run the guest, logging.
    Run,
    /// Run the guest without a log: there is no backup.
    Alone,
    /// Stop the guest, put all its log into the channel, and say so.
    Stop,
    /// End.
    Halt,
}

/// What the vCPU thread has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The guest stands still as ordered; the log ends with this frame.
    Stopped(u64),
    /// The guest switched itself off; the log ends with this frame.
    Ended(u64),
    /// A backup: everything in the log is executed.
    Drained,
    /// A backup: replay went elsewhere.
    Diverged(Divergence),
    /// The machine cannot go on.
    Failed,
}

struct Orders {
    order: Order,
    news: Vec<News>,
}

/// Shared by the vCPU thread and the side thread. Nothing in here is locked on the path from an exit to
/// the log.
pub(super) struct Shared {
    /// When recent batches were encoded and sent.
    pub(super) marks: Marks,
    orders: Mutex<Orders>,
    changed: Condvar,
    /// Copy of the order for the vCPU thread's fast look.
    order_now: AtomicU8,
    /// The backup's guest gets no log any more: end the replay where it ends.
    news_waiting: AtomicBool,
    /// Whether acks need not wake the side thread while no output waits: the vCPU thread wakes it when it has
    /// made some.
    pub(super) quiet: AtomicBool,
    /// Whether the side thread waits for acks, and looks for outputs behind each: such as wait for an ack that it has not taken in yet need
    /// not wake it.
    pub(super) listening: AtomicBool,
    /// Until when outputs may leave: published by the side thread, for all that let them out.
    pub(super) lease: Arc<LeaseEnd>,
    /// Whether the vCPU thread waits for room in the log.
    pub(super) log_full: AtomicBool,
    /// Share of time that the vCPU pauses, in per cent.
    pub(super) throttle: AtomicU8,
    /// Time of these pauses so far, in nanoseconds.
    pub(super) paused: AtomicU64,
    /// Frame of the log that the next outputs wait for; for status.
    pub(super) sent: AtomicU64,
    pub(super) counters: SharedCounters,
    pub(super) bell: Arc<VcpuBell>,
    waker: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("order", &self.order()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(bell: Arc<VcpuBell>) -> Self {
        Self {
            marks: Marks::new(),
            orders: Mutex::new(Orders { order: Order::Wait, news: Vec::new() }),
            changed: Condvar::new(),
            order_now: AtomicU8::new(Order::Wait as u8),
            news_waiting: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            listening: AtomicBool::new(false),
            lease: Arc::new(LeaseEnd::past()),
            log_full: AtomicBool::new(false),
            throttle: AtomicU8::new(0),
            paused: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            counters: SharedCounters::default(),
            bell,
            waker: Mutex::new(None),
        }
    }

    /// What wakes the side thread.
    pub(super) fn set_waker(&self, waker: Box<dyn Fn() + Send>) {
        *lock(&self.waker) = Some(waker);
    }

    /// Wakes the side thread.
    pub(super) fn wake_side(&self) {
        if let Some(waker) = &*lock(&self.waker) {
            waker();
        }
    }

    /// The order in force: one atomic load.
    pub(super) fn order(&self) -> Order {
        match self.order_now.load(Ordering::Acquire) {
            x if x == Order::Wait as u8 => Order::Wait,
            x if x == Order::Run as u8 => Order::Run,
            x if x == Order::Alone as u8 => Order::Alone,
            x if x == Order::Stop as u8 => Order::Stop,
            _ => Order::Halt,
        }
    }

    /// Gives an order. A halt is for good.
    pub(super) fn give(&self, order: Order) {
        let mut orders = lock(&self.orders);
        if orders.order == Order::Halt {
            return;
        }
        orders.order = order;
        self.order_now.store(order as u8, Ordering::Release);
        self.changed.notify_all();
        drop(orders);
        match order {
            Order::Stop | Order::Halt => self.bell.leave(),
            Order::Run | Order::Alone => self.bell.stay(),
            Order::Wait => {}
        }
        self.bell.ring();
    }

    /// Waits until the order is none of `passing`.
    pub(super) fn wait_for_other(&self, passing: &[Order]) -> Order {
        let mut orders = lock(&self.orders);
        while passing.contains(&orders.order) {
            orders = self.changed.wait(orders).unwrap_or_else(PoisonError::into_inner);
        }
        orders.order
    }

    /// As [`Shared::wait_for_other`], for `limit` at most.
    pub(super) fn wait_a_while(&self, passing: &[Order], limit: Duration) -> Order {
        let orders = lock(&self.orders);
        if !passing.contains(&orders.order) {
            return orders.order;
        }
        let waited = self.changed.wait_timeout(orders, limit);
        waited.map_or_else(|e| e.into_inner().0.order, |(orders, _)| orders.order)
    }

    /// Tells the side thread something.
    pub(super) fn tell(&self, news: News) {
        lock(&self.orders).news.push(news);
        self.news_waiting.store(true, Ordering::Release);
        self.wake_side();
    }

    /// What the vCPU thread has told since the last call.
    pub(super) fn news(&self) -> Vec<News> {
        if self.news_waiting.swap(false, Ordering::AcqRel) {
            std::mem::take(&mut lock(&self.orders).news)
        } else {
            Vec::new()
        }
    }
}
