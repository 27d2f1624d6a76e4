//! The uplink: sends events from the outbox to the results topic, asynchronously, each exactly once.
//!
//! A dedicated thread reads durable events from the outbox and publishes them in groups, each group in one
//! transaction together with the sequence of its last event (as the committed offset of a dedicated consumer group,
//! see `crate::kafka::Bookmark`). After a crash that number shows what is already sent, so a consumer that reads
//! committed records sees each event once. The outbox's own cursor follows up to a second later.
//!
//! The broker may be unavailable for days: the events stay in the outbox, within its limits, and the uplink retries
//! with backoff, up to a minute. All intervals are measured by the monotonic clock.
//!
//! Beside that number the broker stores the history of the log up to it (`crate::outbox::Epochs`). A directory that
//! was restored to an earlier state has another history after some point: events common to both are sent, later ones
//! are not, and the log continues under a new identity. A copy of the directory first sends what it shares with its
//! original, under the identity of both: the broker lets only one of them do so at a time, and each first checks how
//! far the other got. Then it continues under its own.
//!
//! An event that can never be published (not a JSON object, or refused by the broker as it is) is written to the dead
//! letters, and the others continue; if it cannot be written, everything waits. If the uplink is killed at that
//! moment, the event may be there twice. A topic that refuses one event after the other is misconfigured: after
//! `max_rejections` without a success no further event is dead-lettered.
//!
//! # Map
//!
//! `pump` the thread; `account` the producer and the bookmark of an identity; `source` reading the outbox in groups,
//! key and id of an event; `dead` the dead letters; `identity` which outbox this is; `status` the statistics.

mod account;
mod dead;
mod identity;
mod pump;
mod source;
mod status;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

pub use status::UplinkStatus;

use crate::health::LinkHealth;
use crate::kafka::KafkaConfig;
use crate::outbox::{Outbox, OutboxError};
use account::Account;
use identity::Identity;
use pump::Pump;
use source::Source;
use status::Numbers;

/// Settings of the uplink.
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// The name of this node: the key of events with neither camera nor request, and part of the transactional id and
    /// the consumer group, `weir-uplink-<node>-<id of the outbox>`.
    pub node: String,
    /// The directory of the outbox.
    pub outbox_dir: PathBuf,
    /// The directory of the dead letters; created for the first.
    pub dead_letter_dir: PathBuf,
    /// Maximum bytes of dead letters; above it their oldest file is deleted.
    pub dead_letter_bytes: u64,
    /// Maximum number of events that the topic may refuse in a row; after that they wait.
    pub max_rejections: u32,
    /// Maximum events of one transaction.
    pub group_events: usize,
    /// Maximum bytes of one transaction; a larger event is sent alone.
    pub group_bytes: usize,
    /// Timeout of one call to the broker.
    pub timeout: Duration,
    /// Wait after the first failure.
    pub backoff_initial: Duration,
    /// Maximum wait between two attempts.
    pub backoff_max: Duration,
}

impl UplinkConfig {
    /// The defaults: groups of 10,000 events or 4 MiB, 20 s per call, backoff from half a second up to a minute, 64
    /// MiB of dead letters, 100 rejections in a row.
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
            max_rejections: 100,
            group_events: 10_000,
            group_bytes: 4 << 20,
            timeout: Duration::from_secs(20),
            backoff_initial: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
        }
    }
}

/// An error on starting an uplink. Later errors are reported by its status.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UplinkError {
    /// An operating system error.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The outbox cannot be read.
    #[error("cannot read the outbox")]
    Outbox(#[source] OutboxError),
    /// The thread cannot be started.
    #[error("cannot start the thread of the uplink")]
    Thread(#[source] io::Error),
}

impl UplinkError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// A running uplink. Dropping it stops the thread without waiting for it.
#[derive(Debug)]
pub struct Uplink {
    outbox: Arc<Outbox>,
    numbers: Arc<Numbers>,
    /// Nothing is ever sent: the thread ends when this is dropped.
    going: Mutex<Option<Sender<()>>>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

impl Uplink {
    /// Starts the thread that sends the events of `outbox` to the results topic of `kafka`. Needs no broker.
    ///
    /// # Errors
    /// When the outbox's directory cannot be read or written, or the thread cannot be started.
    pub fn start(
        config: UplinkConfig,
        kafka: KafkaConfig,
        outbox: Arc<Outbox>,
        health: LinkHealth,
    ) -> Result<Self, UplinkError> {
        let identity = Identity::load_or_create(&config.outbox_dir)?;
        let source = Source::open(&config.outbox_dir, Arc::clone(&outbox)).map_err(UplinkError::Outbox)?;
        let numbers = Arc::new(Numbers::default());
        let (going, stop) = crossbeam_channel::bounded(0);
        let (end, ended) = crossbeam_channel::bounded(0);
        let account = Account::open(&kafka, &config, identity, health.clone());
        let (kept, counts) = (Arc::clone(&outbox), Arc::clone(&numbers));
        let pump = Pump::new(config, kafka, account, kept, source, health, counts, stop);
        let spawned = thread::Builder::new().name("uplink".into()).spawn(move || {
            pump.run();
            drop(end);
        });
        spawned.map_err(UplinkError::Thread)?;
        Ok(Self { outbox, numbers, going: Mutex::new(Some(going)), ended })
    }

    /// The current status.
    #[must_use]
    pub fn status(&self) -> UplinkStatus {
        self.numbers.status(&self.outbox)
    }

    /// Stops the thread after the current group, and waits for that at most `within`; false on timeout. Nothing is
    /// lost then: what was not sent is sent after the next start. Blocks; not for async code.
    pub fn stop(&self, within: Duration) -> bool {
        self.going.lock().take();
        self.ended.recv_timeout(within) == Err(RecvTimeoutError::Disconnected)
    }
}
