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
//! Beside that number stands the history of the log up to it (`crate::outbox::Epochs`). A directory that came back
//! as it was earlier has another history behind some point: what both share is sent, all behind it is not, and
//! the log goes on under a new identity. A copy of the directory first sends what it shares with its original,
//! under the identity of both: the broker lets only one of them do so at a time, and each looks first how far the
//! other came. Then it goes on under its own.
//!
//! An event that can never be published (no JSON object, or refused by the broker as it is) goes to the dead
//! letters and the rest goes on; where it cannot be written, everything waits. Killed at that very moment, the
//! uplink may write it there twice. A topic that refuses one event after the other is not what it should be:
//! after `max_rejections` without a success nothing more is given up.
//!
//! # Map
//!
//! `pump` the thread; `account` the producer and the bookmark of an identity; `source` reading the outbox in groups; `route` under which key an event goes;
//! `dead` the dead letters; `identity` which outbox this is; `status` the numbers.

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
    /// Most events that the topic may refuse one after the other; beyond that they wait.
    pub max_rejections: u32,
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
    /// then ever later up to a minute, 64 MiB of dead letters,
    /// 100 rejections in a row.
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
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// An error when an uplink is started. Once it runs it has none: its status says what is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UplinkError {
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The outbox cannot be read.
    #[error("cannot read the outbox")]
    Outbox(#[source] OutboxError),
    /// There is no thread to be had.
    #[error("cannot start the thread of the uplink")]
    Thread(#[source] io::Error),
}

impl UplinkError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
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
