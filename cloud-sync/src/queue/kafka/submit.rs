//! Submits jobs to the topic: a limited number in flight, each one acknowledged.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::Notify;

use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;
use crate::kafka::{ClientErrors, KafkaConfig, explain, noted};
use crate::queue::NewJob;

/// Maximum jobs in flight.
const MAX_JOBS: usize = 2_000;
/// Maximum bytes in flight, beside one job.
const MAX_BYTES: usize = 16 << 20;

/// Submits jobs. The client is created at the first submission, and again after an error that ends it.
pub(super) struct Submitter {
    config: KafkaConfig,
    health: LinkHealth,
    timeout: Duration,
    client: Mutex<Option<Arc<ThreadedProducer<Deliveries>>>>,
}

/// Callbacks of the client.
#[derive(Default)]
struct Deliveries {
    client_errors: ClientErrors,
}

/// One call of [`Submitter::submit`].
#[derive(Default)]
struct Submission {
    progress: Mutex<Progress>,
    moved: Notify,
}

#[derive(Default)]
struct Progress {
    jobs: usize,
    bytes: usize,
    refused: Option<(KafkaError, String)>,
}

/// Passed with a job and returned with its delivery report.
struct Ticket {
    submission: Arc<Submission>,
    bytes: usize,
}

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.client_errors.note(&error, reason);
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let mut progress = ticket.submission.progress.lock();
        progress.jobs -= 1;
        progress.bytes -= ticket.bytes;
        if let Err((error, message)) = result {
            let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
            progress.refused.get_or_insert((error.clone(), describe(&key, ticket.bytes)));
        }
        drop(progress);
        ticket.submission.moved.notify_one();
    }
}

fn describe(key: &str, bytes: usize) -> String {
    format!("the job `{key}` of {bytes} bytes")
}

impl Submitter {
    pub(super) fn new(config: &KafkaConfig, timeout: Duration, health: LinkHealth) -> Self {
        Self { config: config.clone(), health, timeout, client: Mutex::default() }
    }

    /// Submits all of `jobs` to the topic. Returns their number.
    pub(super) async fn submit(
        &self,
        jobs: &mut (dyn Iterator<Item = SyncResult<NewJob>> + Send),
    ) -> SyncResult<u64> {
        let deadline = Instant::now() + self.timeout;
        let client = self.client().await?;
        let submission = Arc::new(Submission::default());
        let mut count = 0;
        for job in jobs {
            let job = job?;
            let room = |progress: &Progress| {
                progress.jobs == 0
                    || progress.jobs < MAX_JOBS && progress.bytes + job.payload.len() <= MAX_BYTES
            };
            self.wait(&client, &submission, deadline, room).await?;
            self.send(&client, &submission, deadline, &job).await?;
            count += 1;
        }
        self.wait(&client, &submission, deadline, |progress| progress.jobs == 0).await?;
        client.client().context().client_errors.clear();
        self.health.note(Ok(count))
    }

    async fn client(&self) -> SyncResult<Arc<ThreadedProducer<Deliveries>>> {
        let failed = {
            let mut slot = self.client.lock();
            if let Some(client) = slot.as_ref().filter(|client| client.client().fatal_error().is_none()) {
                return Ok(Arc::clone(client));
            }
            slot.take()
        };
        if failed.is_some() {
            // Dropping a client waits for its threads.
            tokio::task::spawn_blocking(move || drop(failed));
        }
        let mut settings = self.config.client();
        settings
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", "gzip")
            .set("message.timeout.ms", self.timeout.as_millis().to_string())
            .set("topic.metadata.propagation.max.ms", "10000")
            .set(
                "queue.buffering.max.kbytes",
                ((MAX_BYTES + self.config.max_message_bytes) / 512).to_string(),
            )
            .set("linger.ms", "5")
            .set("batch.size", "900000")
            .set("partitioner", "murmur2_random");
        let attempt = "set up a producer";
        // Reads the CA file, or the system's hundreds of certificates.
        let made =
            tokio::task::spawn_blocking(move || settings.create_with_context(Deliveries::default())).await;
        let made: ThreadedProducer<_> = made
            .map_err(|error| SyncError::transient(Link::Kafka, format!("cannot {attempt}")).because(error))?
            .map_err(|error| explain(&self.config, attempt, error, None))?;
        Ok(Arc::clone(self.client.lock().get_or_insert(Arc::new(made))))
    }

    async fn send(
        &self,
        client: &ThreadedProducer<Deliveries>,
        submission: &Arc<Submission>,
        deadline: Instant,
        job: &NewJob,
    ) -> SyncResult<()> {
        let bytes = job.payload.len();
        let ticket = Box::new(Ticket { submission: Arc::clone(submission), bytes });
        {
            let mut progress = submission.progress.lock();
            progress.jobs += 1;
            progress.bytes += bytes;
        }
        let mut record = BaseRecord::with_opaque_to(&self.config.requests_topic, ticket)
            .key(job.key.as_str())
            .payload(&job.payload[..]);
        loop {
            record = match client.send(record) {
                Ok(()) => return Ok(()),
                // Other submissions have filled the client's queue.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < deadline =>
                {
                    back
                }
                Err((error, _)) => return Err(self.explain(client, &describe(&job.key, bytes), error)),
            };
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn wait(
        &self,
        client: &ThreadedProducer<Deliveries>,
        submission: &Submission,
        deadline: Instant,
        enough: impl Fn(&Progress) -> bool,
    ) -> SyncResult<()> {
        loop {
            {
                let mut progress = submission.progress.lock();
                if let Some((error, what)) = progress.refused.take() {
                    drop(progress);
                    return Err(self.explain(client, &what, error));
                }
                if enough(&progress) {
                    return Ok(());
                }
            }
            let late = tokio::time::timeout_at(deadline.into(), submission.moved.notified()).await.is_err();
            if late {
                let error = KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut);
                return Err(self.explain(client, "the jobs", error));
            }
        }
    }

    fn explain(&self, client: &ThreadedProducer<Deliveries>, what: &str, error: KafkaError) -> SyncError {
        let attempt = format!("submit {what} to topic {}", self.config.requests_topic);
        let client_errors = &client.client().context().client_errors;
        noted(&self.health, explain(&self.config, &attempt, error, Some(client_errors)))
    }
}
