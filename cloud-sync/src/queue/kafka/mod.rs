//! The queue in Kafka: jobs in one topic, distributed by a consumer group; results in another.
//!
//! A job's results and the offset that marks it as done are written in one transaction (KIP-98), which includes the
//! generation of the group (KIP-447): a member that has lost a partition cannot commit for it. Two threads do the
//! work, because librdkafka's calls block: one polls, one commits; they start with the first [`JobQueue::receive`],
//! so that a process that only submits is no member of the group.

mod committer;
mod consumer;
mod ledger;
mod shared;
mod submit;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use ulid::Ulid;

use self::ledger::Ledger;
use self::shared::{Phase, Shared};
use self::submit::Submitter;
use super::{Delivery, JobQueue, NewJob, QueueStats, ResultRecord, Settled};
use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;
use crate::kafka::KafkaConfig;

/// How long a refusal must last to be reported: a broker that is starting refuses too. Longer than the interval at
/// which the polling thread queries the broker.
const MIN_REFUSAL_TIME: Duration = Duration::from_secs(8);

/// Settings of this process in the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaQueueConfig {
    /// Maximum jobs in progress, at least 1.
    pub inflight: usize,
    /// Name of this node: part of the transactional ids of its processes.
    pub node: String,
    /// Timeout of a submission.
    pub submit_timeout: Duration,
    /// Timeout of [`JobQueue::close`]; settlements may still be committed in the first 7 tenths of it.
    pub close_timeout: Duration,
}

/// A queue of batch work in Kafka.
pub struct KafkaQueue {
    shared: Arc<Shared>,
    submitter: Submitter,
    node: String,
    close_timeout: Duration,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    begun: bool,
    /// Closed when the last thread has ended.
    alive: Option<mpsc::Receiver<()>>,
}

impl fmt::Debug for KafkaQueue {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.shared.config;
        write!(to, "KafkaQueue({} as {})", config.requests_topic, config.group_id)
    }
}

impl KafkaQueue {
    /// A queue that is not connected yet. Needs no broker.
    #[must_use]
    pub fn new(kafka: &KafkaConfig, config: &KafkaQueueConfig, health: LinkHealth) -> Self {
        Self {
            shared: Arc::new(Shared::new(kafka.clone(), health.clone(), config.inflight)),
            submitter: Submitter::new(kafka, config.submit_timeout, health),
            node: config.node.clone(),
            close_timeout: config.close_timeout,
            threads: Mutex::default(),
        }
    }

    /// Joins the group, once.
    fn begin(&self) -> SyncResult<()> {
        let mut threads = self.threads.lock();
        if threads.begun {
            return Ok(());
        }
        let (alive, ended) = mpsc::channel(1);
        // Unique per process: two with the same id would fence each other.
        let id = format!("weir-worker-{}-{}", self.node, Ulid::generate());
        let (shared, end) = (Arc::clone(&self.shared), alive.clone());
        spawn("kafka-commit", move || {
            committer::run(&shared, &id);
            // Nothing more will be committed: the group can be left.
            shared.enter(Phase::Leaving);
            drop(end);
        })?;
        let (shared, end) = (Arc::clone(&self.shared), alive);
        spawn("kafka-poll", move || {
            consumer::run(&shared);
            shared.with(Ledger::close);
            drop(end);
        })?;
        *threads = Threads { begun: true, alive: Some(ended) };
        Ok(())
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> SyncResult<()> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(|_| ()).map_err(|error| {
        SyncError::transient(Link::Kafka, format!("cannot start thread {name}")).because(error)
    })
}

#[async_trait]
impl JobQueue for KafkaQueue {
    async fn submit(&self, jobs: &mut (dyn Iterator<Item = SyncResult<NewJob>> + Send)) -> SyncResult<u64> {
        self.submitter.submit(jobs).await
    }

    async fn receive(&self, wait: Duration) -> SyncResult<Option<Delivery>> {
        let deadline = Instant::now() + wait;
        self.begin()?;
        let config = &self.shared.config;
        loop {
            let mut arrived = std::pin::pin!(self.shared.arrived.notified());
            // Before checking, so that nothing in between is missed.
            arrived.as_mut().enable();
            if let Some(handed) = self.shared.read(Ledger::next_job) {
                let receipt = handed.receipt;
                let position = format!("{}-{}-{}", config.requests_topic, receipt.partition, receipt.offset);
                return Ok(Some(Delivery { position, payload: handed.payload, time: handed.time, receipt }));
            }
            let attempt = format!("consume topic {} as group {}", config.requests_topic, config.group_id);
            if let Some(error) = self.shared.client_errors.lasting(config, &attempt, MIN_REFUSAL_TIME) {
                return Err(error);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            let until = deadline.min(now + Duration::from_millis(500));
            let _ = tokio::time::timeout_at(until.into(), arrived).await;
        }
    }

    async fn settle(&self, delivery: &Delivery, results: Vec<ResultRecord>) -> SyncResult<Settled> {
        let (waiter, answer) = oneshot::channel();
        self.shared.with(|ledger| ledger.settle(delivery.receipt, results, waiter));
        // A dropped sender means that the queue is gone, and the job with it.
        answer.await.unwrap_or(Ok(Settled::Lost))
    }

    async fn release(&self, delivery: Delivery) {
        self.shared.with(|ledger| ledger.release(delivery.receipt, delivery.payload, delivery.time));
    }

    fn stats(&self) -> QueueStats {
        self.shared.read(|ledger| QueueStats {
            waiting: ledger.waiting(),
            inflight: ledger.out() as u64,
            paused: ledger.is_full(),
            partitions: u32::try_from(ledger.partitions().len()).unwrap_or(u32::MAX),
        })
    }

    async fn close(&self) {
        self.shared.enter(Phase::Closing(Instant::now() + self.close_timeout * 7 / 10));
        let alive = {
            let mut threads = self.threads.lock();
            threads.begun = true;
            threads.alive.take()
        };
        if let Some(mut alive) = alive
            && tokio::time::timeout(self.close_timeout, alive.recv()).await.is_err()
        {
            tracing::warn!(queue = ?self, "the broker does not respond; leaving the group without notice");
        }
        self.shared.enter(Phase::Leaving);
        self.shared.with(Ledger::close);
    }
}

/// A handle that is dropped without [`JobQueue::close`] commits nothing more.
impl Drop for KafkaQueue {
    fn drop(&mut self) {
        self.shared.enter(Phase::Leaving);
    }
}
