//! The uplink: events from the outbox to the results topic, in their own time, each exactly once.
//!
//! A thread of its own reads what is durable in the outbox and publishes it in groups, each group in one
//! transaction together with the sequence of its last event (as the committed offset of a consumer group of
//! its own, see `crate::kafka::Bookmark`). After a crash that number says what is already there, so a
//! consumer that reads committed records sees each event once. The outbox's own cursor follows up to a second later.
//!
//! The broker may be away for days: the events stay in the outbox, under its bounds, and the uplink tries
//! again ever later, up to a minute. Only how long things take is measured, never by the wall clock.
//!
//! An event that can never be published (no JSON object, or refused by the broker as it is) goes to the dead
//! letters and the rest goes on. Killed at that very moment, the uplink may write it there twice.
//!
//! # Map
//!
//! `pump` the thread; `source` reading the outbox in groups; `route` under which key an event goes;
//! `dead` the dead letters; `identity` which outbox this is; `status` the numbers.

mod dead;
mod error;
mod identity;
mod pump;
mod route;
mod source;
mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

pub use error::UplinkError;
pub use status::UplinkStatus;

use crate::backoff::Backoff;
use crate::health::LinkHealth;
use crate::kafka::{KafkaConfig, TransactionalProducer};
use crate::outbox::Outbox;
use dead::DeadLetters;
use pump::Pump;
use source::Source;
use status::Numbers;

/// How the uplink works.
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// The name of this node: the key of events that name neither camera nor request, and part of the
    /// transactional id and the consumer group, `weir-uplink-<node>-<id of the outbox>`.
    pub node: String,
    /// The directory of the outbox.
    pub outbox_dir: PathBuf,
    /// The folder of the dead letters; made when the first comes.
    pub dead_letter_dir: PathBuf,
    /// Most bytes of dead letters; beyond it the oldest file of them is deleted.
    pub dead_letter_bytes: u64,
    /// Most events of one transaction.
    pub group_events: usize,
    /// Most bytes of one transaction; a larger event goes alone.
    pub group_bytes: usize,
    /// How long the broker may take to answer one call.
    pub timeout: Duration,
    /// How long to wait after the first failure.
    pub first_wait: Duration,
    /// The longest wait between two tries.
    pub longest_wait: Duration,
}

impl UplinkConfig {
    /// The defaults: groups of 10,000 events or 4 MiB, 20 s for a call, tries again after half a second and
    /// then ever later up to a minute, 64 MiB of dead letters.
    #[must_use]
    pub fn new(
        node: impl Into<String>,
        outbox_dir: impl Into<PathBuf>,
        dead_letter_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            node: node.into(),
            outbox_dir: outbox_dir.into(),
            dead_letter_dir: dead_letter_dir.into(),
            dead_letter_bytes: 64 << 20,
            group_events: 10_000,
            group_bytes: 4 << 20,
            timeout: Duration::from_secs(20),
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// A running uplink. Dropping it tells the thread to end and does not wait for it.
#[derive(Debug)]
pub struct Uplink {
    outbox: Arc<Outbox>,
    numbers: Arc<Numbers>,
    /// Nothing is ever sent: the thread ends when this is gone.
    going: Mutex<Option<Sender<()>>>,
    /// Gone when the thread has ended.
    ended: Receiver<()>,
}

impl Uplink {
    /// Starts the thread that sends the events of `outbox` to the results topic of `kafka`. Needs no broker.
    ///
    /// # Errors
    /// When the outbox's directory cannot be read or written, or the system gives no thread.
    pub fn start(
        config: UplinkConfig,
        kafka: KafkaConfig,
        outbox: Arc<Outbox>,
        health: LinkHealth,
    ) -> Result<Self, UplinkError> {
        let identity = identity::load_or_create(&config.outbox_dir)?;
        let name = format!("weir-uplink-{}-{identity}", config.node);
        let source = Source::open(&config.outbox_dir, Arc::clone(&outbox)).map_err(UplinkError::Outbox)?;
        let numbers = Arc::new(Numbers::default());
        let (going, stop) = crossbeam_channel::bounded(0);
        let (end, ended) = crossbeam_channel::bounded(0);
        let pump = Pump {
            producer: TransactionalProducer::open(&kafka, &name, config.timeout, health.clone()),
            bookmark: None,
            kafka,
            name,
            source,
            dead: DeadLetters::new(config.dead_letter_dir.clone(), config.dead_letter_bytes),
            backoff: Backoff::new(config.first_wait, config.longest_wait),
            config,
            outbox: Arc::clone(&outbox),
            health,
            numbers: Arc::clone(&numbers),
            at: None,
            uncommitted_since: None,
            buried: std::collections::BTreeSet::new(),
            losses: pump::Losses::default(),
            stop,
        };
        let spawned = thread::Builder::new().name("uplink".into()).spawn(move || {
            pump.run();
            drop(end);
        });
        spawned.map_err(UplinkError::Thread)?;
        Ok(Self { outbox, numbers, going: Mutex::new(Some(going)), ended })
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> UplinkStatus {
        self.numbers.status(&self.outbox)
    }

    /// Ends the thread once the group under way is through, and waits for that at most `within`; false when
    /// that was not enough. Nothing is lost then: what was not sent is sent after the next start. Blocks;
    /// not for async code.
    pub fn stop(&self, within: Duration) -> bool {
        self.going.lock().take();
        self.ended.recv_timeout(within) == Err(RecvTimeoutError::Disconnected)
    }
}
