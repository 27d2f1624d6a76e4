//! Publishes records in transactions: all of a group or none, together with the position of their reader.

mod attempt;

use std::fmt;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{Producer, ThreadedProducer};

use super::errors::{Watch, explain, is_fenced, is_lost_group, is_too_large, noted, refuses_record};
use super::{KafkaConfig, Position};
use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;

pub use attempt::PublishError;
use attempt::{Failure, fill, remaining};

/// Timeout of an abort, after which the client is dropped instead.
const ABORT_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of one call of librdkafka's abort, of several in [`ABORT_TIMEOUT`]: each purges the queued records first, and a
/// record that is queued for a retry just after the purge blocks that call until its end.
const ABORT_STEP: Duration = Duration::from_millis(200);
/// Maximum bytes of a batch of records in one request. Below the broker's own limit on a batch (1 MiB by default).
const MAX_BATCH_BYTES: usize = 900_000;
/// Batches are not reduced below this when a topic refuses them.
const MIN_BATCH_BYTES: usize = 16_384;
/// Overhead of a record in a batch besides key and payload: lengths, the header, the batch's own header.
const FRAMING: usize = 512;

/// One record to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Determines the partition.
    pub key: &'a [u8],
    /// Identifies the record: sent as the header `id`.
    pub id: &'a str,
    /// The message.
    pub payload: &'a [u8],
}

/// Publishes groups of records, each in its own transaction: acknowledged by all in-sync replicas, compressed with
/// gzip, and visible to readers of committed records all at once.
///
/// Every call blocks for about at most the timeout given to [`TransactionalProducer::open`]: it belongs on a
/// dedicated thread. Opening needs no broker; the first call does.
pub struct TransactionalProducer {
    config: KafkaConfig,
    id: String,
    health: LinkHealth,
    timeout: Duration,
    /// Created at the first call, and again after a fatal error.
    client: Option<ThreadedProducer<Watch>>,
    /// Whether `client` has fenced its predecessors and ended their transactions.
    ready: bool,
    largest_batch: usize,
}

impl fmt::Debug for TransactionalProducer {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "TransactionalProducer({})", self.id)
    }
}

impl TransactionalProducer {
    /// A producer with a `transactional_id` of its own: a newer one with the same id aborts the transactions of the
    /// older and fences it. `timeout` limits each call, and an open transaction (of a process that died) ends after a
    /// third more than it.
    #[must_use]
    pub fn open(config: &KafkaConfig, transactional_id: &str, timeout: Duration, health: LinkHealth) -> Self {
        Self {
            config: config.clone(),
            id: transactional_id.to_owned(),
            health,
            timeout,
            client: None,
            ready: false,
            largest_batch: MAX_BATCH_BYTES,
        }
    }

    /// Sets the timeout of the following calls. The transaction timeout is sent to the broker when a client is
    /// initialized, so another timeout needs another client.
    pub(crate) fn allow(&mut self, timeout: Duration) {
        if timeout != self.timeout {
            self.timeout = timeout;
            self.drop_client();
        }
    }

    /// Ends whatever an earlier producer with this id, or an earlier call, left open, published or not. Afterwards
    /// the committed position shows what was published.
    ///
    /// # Errors
    /// When the broker is unavailable, or refuses.
    pub fn recover(&mut self) -> SyncResult<()> {
        self.drop_client();
        let prepared = self.prepare(Instant::now() + self.timeout).map(|_| ());
        self.health.note(prepared)
    }

    /// Publishes `records`, in order, to `topic`, and moves `position` with them: all or nothing. The client is
    /// recreated where necessary: for a transactional id that nobody else can have.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish(
        &mut self,
        topic: &str,
        records: &[Record<'_>],
        position: Option<&Position<'_>>,
    ) -> Result<(), PublishError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let prepared = self.prepare(deadline).map(|_| ());
            self.health.note(prepared).map_err(PublishError::Failed)?;
            match self.attempt(topic, records, position, deadline) {
                Err(PublishError::Anew) => {}
                outcome => return outcome,
            }
        }
    }

    /// Like [`Self::publish`], but only as long as nobody has fenced this producer since the last
    /// [`TransactionalProducer::recover`]: it fails with [`PublishError::Anew`] where the client would have to be
    /// recreated.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn publish_next(
        &mut self,
        topic: &str,
        records: &[Record<'_>],
        position: Option<&Position<'_>>,
    ) -> Result<(), PublishError> {
        self.attempt(topic, records, position, Instant::now() + self.timeout)
    }

    fn attempt(
        &mut self,
        topic: &str,
        records: &[Record<'_>],
        position: Option<&Position<'_>>,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let Some(client) = self.client.as_ref().filter(|_| self.ready) else {
            return Err(PublishError::Anew);
        };
        match fill(client, topic, records, position, deadline) {
            Ok(()) => self.commit(topic, deadline),
            Err(failure) => Err(self.give_up(topic, records, failure, deadline)),
        }
    }

    /// The client, ready to begin a transaction.
    fn prepare(&mut self, deadline: Instant) -> SyncResult<&ThreadedProducer<Watch>> {
        let client = match self.client.take() {
            Some(client) if self.ready => return Ok(self.client.insert(client)),
            Some(client) => client,
            None => self.connect()?,
        };
        let begun = client.init_transactions(remaining(deadline));
        let watch = watch(&client);
        match begun {
            Ok(()) => {
                watch.client_errors().clear();
                self.ready = true;
                Ok(self.client.insert(client))
            }
            Err(error) => {
                let attempt = format!("begin transactions as {}", self.id);
                let explained = explain(&self.config, &attempt, error.clone(), Some(watch.client_errors()));
                // A call that only timed out continues in the background: the next call resumes it.
                if matches!(&error, KafkaError::Transaction(error) if error.is_retriable())
                    && !is_fatal(&client)
                {
                    self.client = Some(client);
                }
                Err(explained)
            }
        }
    }

    fn connect(&self) -> SyncResult<ThreadedProducer<Watch>> {
        let mut client = self.config.client();
        let transaction = self.timeout + self.timeout / 3;
        client
            .set("transactional.id", &self.id)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", "gzip")
            .set("transaction.timeout.ms", transaction.as_millis().to_string())
            .set("message.timeout.ms", self.timeout.as_millis().to_string())
            .set("topic.metadata.propagation.max.ms", "10000")
            // Queued records are in memory twice, with the caller's copy: two full requests per partition suffice.
            .set("queue.buffering.max.kbytes", buffer_kbytes(&self.config).to_string())
            .set("queue.buffering.max.messages", "20000")
            .set("linger.ms", "5")
            // A transaction that begins before the markers of the last are written is retried.
            .set("retry.backoff.ms", "20")
            .set("batch.size", self.largest_batch.to_string())
            // Java's clients' partitioner, so that a key stays on its partition whoever writes.
            .set("partitioner", "murmur2_random")
            .set("delivery.report.only.error", "true");
        client
            .create_with_context(Watch::default())
            .map_err(|error| explain(&self.config, "set up a producer", error, None))
    }

    fn commit(&mut self, topic: &str, deadline: Instant) -> Result<(), PublishError> {
        let Some(client) = self.client.as_ref() else {
            let what = "the producer was closed before it committed";
            return Err(PublishError::Failed(SyncError::transient(Link::Kafka, what)));
        };
        let committed = loop {
            match client.commit_transaction(remaining(deadline)) {
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
                other => break other,
            }
        };
        let Err(error) = committed else {
            watch(client).client_errors().clear();
            self.health.note(Ok(())).ok();
            return Ok(());
        };
        let attempt = format!("commit to topic {topic}");
        let explained = explain(&self.config, &attempt, error.clone(), Some(watch(client).client_errors()));
        if is_fenced_out(client, &error) {
            self.drop_client();
            return Err(PublishError::Fenced(explained));
        }
        if matches!(&error, KafkaError::Transaction(error) if error.txn_requires_abort()) {
            self.abort();
            return Err(PublishError::Failed(noted(&self.health, explained)));
        }
        self.drop_client();
        Err(PublishError::Unknown(noted(&self.health, explained)))
    }

    /// Aborts the transaction and returns the reason.
    fn give_up(
        &mut self,
        topic: &str,
        records: &[Record<'_>],
        failure: Failure,
        deadline: Instant,
    ) -> PublishError {
        let watch = self.client.as_ref().map(|client| watch(client).clone()).unwrap_or_default();
        let attempt = format!("publish to topic {topic}");
        let shut_out = self.client.as_ref().is_some_and(|client| match &failure {
            Failure::Client(error) => is_fenced_out(client, error),
            Failure::Record | Failure::Late => is_fatally_fenced(client),
        });
        if shut_out {
            self.drop_client();
            let error = KafkaError::MessageProduction(Code::ProducerFenced);
            return PublishError::Fenced(explain(&self.config, &attempt, error, Some(watch.client_errors())));
        }
        self.abort();
        // All reports have arrived: an abort waits for records in flight.
        let mut back = watch.take_refused();
        back.retain(|(_, code)| !matches!(code, Code::PurgeQueue | Code::PurgeInflight));
        let error = match failure {
            // Unless a record was refused meanwhile: then that is why the transaction accepts no more.
            Failure::Client(error) if back.is_empty() => error,
            Failure::Late if back.is_empty() => KafkaError::MessageProduction(Code::MessageTimedOut),
            _ => {
                if self.reduce_batches(&back) {
                    let bytes = self.largest_batch;
                    tracing::info!(
                        topic,
                        bytes,
                        "the topic refused a batch as too large; using smaller batches"
                    );
                    return PublishError::Anew;
                }
                let blamed = refused_record(&back, records)
                    .and_then(|(index, code)| Some((index, records.get(index)?, code)))
                    .map(|(index, record, code)| match code {
                        Code::InvalidRecord => (index, record, self.probe_record(topic, record, deadline)),
                        code => (index, record, code),
                    });
                match blamed {
                    Some((index, record, code)) if refuses_record(code) => {
                        let (id, size) = (record.id, size(record));
                        let attempt = format!("publish record {id} of {size} bytes to topic {topic}");
                        let error =
                            explain(&self.config, &attempt, KafkaError::MessageProduction(code), None);
                        return PublishError::Refused { index, error };
                    }
                    Some((_, _, code)) => KafkaError::MessageProduction(code),
                    None => KafkaError::MessageProduction(back.first().map_or(Code::Fail, |(_, code)| *code)),
                }
            }
        };
        let lost = error.rdkafka_error_code().is_some_and(is_lost_group);
        let explained = explain(&self.config, &attempt, error, Some(watch.client_errors()));
        if lost {
            PublishError::Lost(explained)
        } else {
            PublishError::Failed(noted(&self.health, explained))
        }
    }

    /// The error code of a record that is sent alone, in a transaction that is aborted. When the broker refuses
    /// several records of a batch, librdkafka reports each only as invalid, even if the only cause is the clock of
    /// the producer: then no record is to blame, and a later attempt has a later time.
    fn probe_record(&mut self, topic: &str, record: &Record<'_>, deadline: Instant) -> Code {
        let Some(client) = self.client.as_ref().filter(|_| self.ready) else { return Code::MessageTimedOut };
        let watch = watch(client).clone();
        let alone = fill(client, topic, std::slice::from_ref(record), None, deadline);
        self.abort();
        let code = match alone {
            // Accepted, for this time.
            Ok(()) => None,
            Err(Failure::Client(error)) => error.rdkafka_error_code(),
            Err(Failure::Record) => watch.take_refused().first().map(|(_, code)| *code),
            Err(Failure::Late) => Some(Code::MessageTimedOut),
        };
        code.unwrap_or(Code::Fail)
    }

    /// Whether the next attempt uses smaller batches: a batch is refused as a whole, without information about which
    /// of its records was too large.
    fn reduce_batches(&mut self, back: &[(usize, Code)]) -> bool {
        let too_large = back.iter().filter(|(_, code)| is_too_large(*code)).count();
        if too_large < 2 || self.largest_batch <= MIN_BATCH_BYTES {
            return false;
        }
        self.largest_batch = (self.largest_batch / 4).max(MIN_BATCH_BYTES);
        self.drop_client();
        true
    }

    fn abort(&mut self) {
        let deadline = Instant::now() + ABORT_TIMEOUT.min(self.timeout);
        let Some(client) = &self.client else { return };
        while !is_fatal(client) {
            match client.abort_transaction(ABORT_STEP.min(remaining(deadline))) {
                Ok(()) => return,
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
                Err(_) => break,
            }
        }
        self.drop_client();
    }

    /// Open transactions end when the next client of the same id is initialized.
    fn drop_client(&mut self) {
        self.ready = false;
        self.client = None;
    }
}

/// Which of the refused records is refused itself: the largest of those.
fn refused_record(back: &[(usize, Code)], records: &[Record<'_>]) -> Option<(usize, Code)> {
    let refused = back.iter().filter(|(_, code)| refuses_record(*code));
    refused.max_by_key(|(index, _)| records.get(*index).map_or(0, size)).copied()
}

fn watch(client: &ThreadedProducer<Watch>) -> &Watch {
    client.client().context()
}

fn is_fatal(client: &ThreadedProducer<Watch>) -> bool {
    client.client().fatal_error().is_some()
}

/// Whether the broker accepts nothing from this client any more, because another has its transactional id.
fn is_fenced_out(client: &ThreadedProducer<Watch>, error: &KafkaError) -> bool {
    error.rdkafka_error_code().is_some_and(is_fenced) || is_fatally_fenced(client)
}

fn is_fatally_fenced(client: &ThreadedProducer<Watch>) -> bool {
    client.client().fatal_error().is_some_and(|(code, _)| is_fenced(code))
}

fn size(record: &Record<'_>) -> usize {
    record.key.len() + record.payload.len() + record.id.len() + FRAMING
}

/// Space for the largest record, and for a few full requests.
fn buffer_kbytes(config: &KafkaConfig) -> usize {
    (config.max_message_bytes / 1024 + 1).max(8 * 1024)
}
