//! The queue of batch work, and where its results are published: embedded in a file, or Kafka.
//!
//! What both implementations promise, and the contract suite checks on both:
//!
//! 1. **At least once in.** A job that [`JobQueue::submit`] has taken is delivered until it is settled:
//!    after a crash, a lost network or a partition that moved, again, with the same
//!    [`Delivery::position`].
//! 2. **Exactly once visible.** [`JobQueue::settle`] publishes the results of a job and takes the job out
//!    of the queue in one step. After any crash either both have happened or neither. (Kafka: one
//!    transaction, so consumers with `isolation.level=read_committed` see each result once. Embedded: a
//!    mark before, and a look at the outbox after a crash.)
//! 3. **Bounded.** No more than `inflight` jobs are out at once. What is fetched ahead of them is bounded in
//!    number and bytes.
//! 4. **Fair.** Batches whose jobs wait take turns, and none has all places: see `fair`. In Kafka this holds among the
//!    messages that this process has fetched; what lies behind them in its partition is not seen yet.
//! 5. **Nothing blocks.** Jobs may be settled in any order; a job that takes long holds back neither the
//!    work on others nor, embedded, their acknowledgement.

mod embedded;
mod fair;
mod kafka;

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

pub use self::embedded::{EmbeddedQueue, EmbeddedQueueConfig, QueueFull};
pub use self::kafka::{KafkaQueue, KafkaQueueConfig};
use crate::error::SyncResult;

/// A job on its way into the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// What decides the partition: jobs of one key stay in order, jobs of different keys spread. Jobs whose keys are
    /// `<batch>/<number>` with the same batch share what one batch may have.
    pub key: String,
    /// The message as it stands on the wire.
    pub payload: Bytes,
}

/// A job that is out for work. To be given back by [`JobQueue::settle`] or [`JobQueue::release`].
#[derive(Debug)]
pub struct Delivery {
    /// Names the job: unique in this queue, and the same when it is delivered again. For Kafka
    /// `topic-partition-offset`.
    pub position: String,
    /// The message as it stands on the wire.
    pub payload: Bytes,
    /// When it was put into the queue, as far as that is known.
    pub time: Option<SystemTime>,
    /// The implementation's own name for it.
    pub(crate) receipt: Receipt,
}

impl Delivery {
    /// A delivery of an implementation outside this crate, which finds its jobs again by their position.
    #[must_use]
    pub fn new(position: impl Into<String>, payload: Bytes, time: Option<SystemTime>) -> Self {
        let receipt = Receipt { partition: 0, offset: 0, epoch: 0 };
        Self { position: position.into(), payload, time, receipt }
    }
}

/// How an implementation finds a delivery again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Receipt {
    /// Partition; 0 where there are none.
    pub(crate) partition: i32,
    /// Offset, or sequence number.
    pub(crate) offset: i64,
    /// Which assignment of the partition delivered it: an older one's deliveries are not ours any more.
    pub(crate) epoch: u64,
}

/// One record for the results topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRecord {
    /// Names the result: the same whenever the same work is done again.
    pub id: String,
    /// What decides the partition.
    pub key: String,
    /// JSON.
    pub payload: Bytes,
}

/// What became of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Settled {
    /// The results are published and the job is out of the queue.
    Done,
    /// The job is not ours any more (its partition has moved to another worker, which will do it again):
    /// nothing was published.
    Lost,
}

/// How the queue stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Jobs waiting that are not out for work; for Kafka the lag of the partitions that this process
    /// has. `None` when that is not known.
    pub waiting: Option<u64>,
    /// Jobs out for work by this process.
    pub inflight: u64,
    /// Whether fetching has stopped because `inflight` is at its bound.
    pub paused: bool,
    /// Partitions that this process has; 1 for the embedded queue.
    pub partitions: u32,
}

/// A queue of batch work.
#[async_trait]
pub trait JobQueue: Send + Sync + fmt::Debug {
    /// Puts jobs into the queue, in order. When it returns they are durable. They are drawn from
    /// `jobs` as they go, and never held all at once.
    ///
    /// # Errors
    /// When the queue is out of reach or refuses a job, or an element of `jobs` is an error. Some of the
    /// jobs may be in the queue then: submit all of them again.
    async fn submit(&self, jobs: &mut (dyn Iterator<Item = SyncResult<NewJob>> + Send)) -> SyncResult<u64>;

    /// Waits up to `wait` for the next job. `None` when none came, when as many as allowed are out, or
    /// when the queue is out of reach: that shows in its health and passes by itself.
    ///
    /// # Errors
    /// What does not pass by itself, such as credentials that are refused.
    async fn receive(&self, wait: Duration) -> SyncResult<Option<Delivery>>;

    /// Publishes `results` and takes the job out of the queue, both or neither. A network that is away
    /// is waited for.
    ///
    /// # Errors
    /// What does not pass by itself: a result that the broker refuses, with its id in the text. The job
    /// is still out then: settle it again without that result.
    async fn settle(&self, delivery: &Delivery, results: Vec<ResultRecord>) -> SyncResult<Settled>;

    /// Gives a job back unfinished, for whoever comes next.
    async fn release(&self, delivery: Delivery);

    /// How it stands, at the pace of a metrics scrape.
    fn stats(&self) -> QueueStats;

    /// Leaves: finishes settlements under way, gives back what is out, leaves the consumer group at
    /// once, so that others need not wait for a timeout.
    async fn close(&self);
}
