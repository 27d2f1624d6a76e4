//! The queue of batch work, and where its results are published: embedded in a file, or Kafka.
//!
//! Both implementations guarantee, and the contract suite checks on both:
//!
//! 1. **At least once in.** A job that [`JobQueue::submit`] has accepted is delivered until it is settled: after a
//!    crash, a network failure or a partition that moved, again, with the same [`Delivery::position`].
//! 2. **Exactly once visible.** [`JobQueue::settle`] publishes the results of a job and removes the job from the
//!    queue in one step. After any crash either both have happened or neither. (Kafka: one transaction, so consumers
//!    with `isolation.level=read_committed` see each result once. Embedded: a mark before it, and a search of the
//!    outbox after a crash.)
//! 3. **Bounded.** At most `inflight` jobs are in progress at once. What is prefetched beyond them is limited in
//!    number and bytes.
//! 4. **Fair.** Batches with waiting jobs alternate, and none takes all slots: see `fair`. In Kafka this holds among
//!    the messages that this process has fetched; messages behind them in the partition are not visible yet.
//! 5. **Nothing blocks.** Jobs may be settled in any order; a slow job delays neither the work on others nor,
//!    embedded, their acknowledgement.

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

/// A job to be submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Determines the partition: jobs with the same key stay in order, jobs with different keys are distributed. Jobs
    /// with keys `<batch>/<number>` of the same batch share the limits of one batch.
    pub key: String,
    /// The message in its wire format.
    pub payload: Bytes,
}

/// A job in progress. To be returned by [`JobQueue::settle`] or [`JobQueue::release`].
#[derive(Debug)]
pub struct Delivery {
    /// Identifies the job: unique in this queue, and the same when it is redelivered. For Kafka
    /// `topic-partition-offset`.
    pub position: String,
    /// The message in its wire format.
    pub payload: Bytes,
    /// When it was submitted, if known.
    pub time: Option<SystemTime>,
    /// The implementation's own identifier of the job.
    pub(crate) receipt: Receipt,
}

impl Delivery {
    /// A delivery of an implementation outside this crate, which identifies its jobs by their position.
    #[must_use]
    pub fn new(position: impl Into<String>, payload: Bytes, time: Option<SystemTime>) -> Self {
        let receipt = Receipt { partition: 0, offset: 0, epoch: 0 };
        Self { position: position.into(), payload, time, receipt }
    }
}

/// How an implementation identifies a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Receipt {
    /// Partition; 0 where there are none.
    pub(crate) partition: i32,
    /// Offset, or sequence.
    pub(crate) offset: i64,
    /// Which assignment of the partition delivered it: deliveries of an older one are no longer valid.
    pub(crate) epoch: u64,
}

/// One record for the results topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRecord {
    /// Identifies the result: the same whenever the same work is repeated.
    pub id: String,
    /// Determines the partition.
    pub key: String,
    /// JSON.
    pub payload: Bytes,
}

/// Outcome of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Settled {
    /// The results are published and the job is removed from the queue.
    Done,
    /// The job no longer belongs to this process (its partition has moved to another worker, which will repeat it):
    /// nothing was published.
    Lost,
}

/// Statistics of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Jobs waiting that are not in progress; for Kafka the lag of the partitions assigned to this process. `None`
    /// when unknown.
    pub waiting: Option<u64>,
    /// Jobs in progress in this process.
    pub inflight: u64,
    /// Whether fetching has stopped because `inflight` is at its limit.
    pub paused: bool,
    /// Partitions assigned to this process; 1 for the embedded queue.
    pub partitions: u32,
}

/// A queue of batch work.
#[async_trait]
pub trait JobQueue: Send + Sync + fmt::Debug {
    /// Submits jobs, in order. When it returns they are durable. They are taken from the iterator one by one, and
    /// never held in memory all at once.
    ///
    /// # Errors
    /// When the queue is unavailable or refuses a job, or an element of `jobs` is an error. Some of the jobs may be
    /// in the queue then: submit all of them again.
    async fn submit(&self, jobs: &mut (dyn Iterator<Item = SyncResult<NewJob>> + Send)) -> SyncResult<u64>;

    /// Waits up to `wait` for the next job. `None` when none arrived, when the maximum number is in progress, or when
    /// the queue is unavailable: that is temporary, and reported by its health.
    ///
    /// # Errors
    /// Permanent ones, such as refused credentials.
    async fn receive(&self, wait: Duration) -> SyncResult<Option<Delivery>>;

    /// Publishes `results` and removes the job from the queue, both or neither. Waits while the network is
    /// unavailable.
    ///
    /// # Errors
    /// Permanent ones: a result that the broker refuses, with its id in the text. The job is still in progress then:
    /// settle it again without that result.
    async fn settle(&self, delivery: &Delivery, results: Vec<ResultRecord>) -> SyncResult<Settled>;

    /// Returns a job unfinished, for the next receiver.
    async fn release(&self, delivery: Delivery);

    /// Statistics, at the rate of a metrics scrape.
    fn stats(&self) -> QueueStats;

    /// Closes the queue: finishes settlements in progress, returns jobs in progress, leaves the consumer group
    /// immediately, so that others need not wait for a timeout.
    async fn close(&self);
}
