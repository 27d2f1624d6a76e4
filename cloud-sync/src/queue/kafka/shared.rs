//! State shared by the handle, the polling thread and the committing thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rdkafka::consumer::BaseConsumer;
use tokio::sync::{Notify, oneshot};

use super::consumer::Callbacks;
use super::ledger::Ledger;
use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;
use crate::kafka::{ClientErrors, KafkaConfig};
use crate::queue::Settled;

/// Life cycle of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Working.
    Open,
    /// Settled jobs are being committed, until this time; nothing is delivered.
    Closing(Instant),
    /// Nothing more is committed: the group is being left.
    Leaving,
}

/// The shared state. Locked briefly, never across a call to the broker.
pub(super) struct Shared {
    pub(super) config: KafkaConfig,
    pub(super) health: LinkHealth,
    pub(super) client_errors: Arc<ClientErrors>,
    /// A job may have become available.
    pub(super) arrived: Notify,
    state: Mutex<State>,
    /// A group may have become ready to commit, or the phase has changed.
    changed: Condvar,
}

struct State {
    ledger: Ledger,
    phase: Phase,
    consumer: Option<Arc<BaseConsumer<Callbacks>>>,
}

impl Shared {
    pub(super) fn new(config: KafkaConfig, health: LinkHealth, inflight: usize) -> Self {
        let state = State { ledger: Ledger::new(inflight), phase: Phase::Open, consumer: None };
        Self {
            config,
            health,
            client_errors: Arc::default(),
            arrived: Notify::new(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Reads or changes the ledger, then wakes the waiting tasks and threads.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let result = change(&mut self.state.lock().ledger);
        self.changed.notify_all();
        self.arrived.notify_waiters();
        result
    }

    /// Reads the ledger.
    pub(super) fn read<T>(&self, read: impl FnOnce(&mut Ledger) -> T) -> T {
        read(&mut self.state.lock().ledger)
    }

    pub(super) fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// Advances to `phase`, never back.
    pub(super) fn enter(&self, phase: Phase) {
        let mut state = self.state.lock();
        state.phase = state.phase.max(phase);
        state.ledger.stop_delivery();
        drop(state);
        self.changed.notify_all();
        self.arrived.notify_waiters();
    }

    pub(super) fn consumer(&self) -> Option<Arc<BaseConsumer<Callbacks>>> {
        self.state.lock().consumer.clone()
    }

    pub(super) fn set_consumer(&self, consumer: Option<Arc<BaseConsumer<Callbacks>>>) {
        self.state.lock().consumer = consumer;
    }

    /// Waits until `ready` finds something. `None` once there is nothing and the queue is closing.
    pub(super) fn wait_for<T>(&self, mut ready: impl FnMut(&mut Ledger) -> Option<T>) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if state.phase == Phase::Leaving {
                return None;
            }
            if let Some(found) = ready(&mut state.ledger) {
                return Some(found);
            }
            if state.phase != Phase::Open {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Sleeps for `wait`, less when the queue is left meanwhile. Returns whether it is still in use.
    pub(super) fn pause(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let mut state = self.state.lock();
        loop {
            let until = match state.phase {
                Phase::Open => until,
                Phase::Closing(end) => until.min(end),
                Phase::Leaving => return false,
            };
            if Instant::now() >= until {
                return !is_over(&state);
            }
            self.changed.wait_until(&mut state, until);
        }
    }
}

fn is_over(state: &MutexGuard<'_, State>) -> bool {
    match state.phase {
        Phase::Open => false,
        Phase::Closing(end) => Instant::now() >= end,
        Phase::Leaving => true,
    }
}

/// Receiver of a settlement's outcome. It may be dropped.
pub(super) type Waiter = oneshot::Sender<SyncResult<Settled>>;

pub(super) fn answer(waiters: Vec<Waiter>, with: impl Fn() -> SyncResult<Settled>) {
    for waiter in waiters {
        // The caller may have stopped waiting.
        let _ = waiter.send(with());
    }
}

pub(super) fn left_behind() -> SyncError {
    let what = "the queue was closed before the broker confirmed that the results are published";
    SyncError::transient(Link::Kafka, what)
}

/// The first gets the error itself, the others its text.
pub(super) fn answer_error(waiters: Vec<Waiter>, mut error: Option<SyncError>) {
    let Some((link, text)) = error.as_ref().map(|error| (error.link(), error.in_full())) else { return };
    for waiter in waiters {
        let again = || SyncError::permanent(link, text.clone());
        let _ = waiter.send(Err(error.take().unwrap_or_else(again)));
    }
}
