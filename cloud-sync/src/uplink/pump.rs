//! The thread of the uplink: find out what is sent already, then group after group.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::UplinkConfig;
use super::dead::DeadLetters;
use super::route::{Route, route};
use super::source::{Group, Source};
use super::status::Numbers;
use crate::backoff::Backoff;
use crate::error::{Link, SyncError, SyncResult};
use crate::health::LinkHealth;
use crate::kafka::{Bookmark, KafkaConfig, PublishError, Record, TransactionalProducer};
use crate::outbox::{Outbox, OutboxError, StoredEvent};

/// How often the outbox is looked at while nothing waits. It also groups what comes in between: ten
/// transactions a second at most while there is little to do.
const POLL: Duration = Duration::from_millis(100);
/// How often the numbers are brought up to date while the broker is away.
const LOOK: Duration = Duration::from_secs(1);
/// How far the outbox's cursor may be behind. Each step of it is forced to the disk, beside the events that
/// requests wait for; what is sent is known to the broker anyhow.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Pump {
    pub(super) config: UplinkConfig,
    pub(super) kafka: KafkaConfig,
    /// Transactional id and consumer group.
    pub(super) name: String,
    pub(super) producer: TransactionalProducer,
    /// Made at the first try: with a wrong setting it cannot be, and that is for the status to say.
    pub(super) bookmark: Option<Bookmark>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) source: Source,
    pub(super) dead: DeadLetters,
    pub(super) backoff: Backoff,
    pub(super) health: LinkHealth,
    pub(super) numbers: Arc<Numbers>,
    /// Everything up to this sequence is sent; `None` while only the broker knows.
    pub(super) at: Option<u64>,
    /// Since when the outbox's cursor is behind `at`.
    pub(super) uncommitted_since: Option<Instant>,
    /// Dead letters of the group under way: a group that has to be sent again leaves them out.
    pub(super) buried: BTreeSet<u64>,
    pub(super) losses: Losses,
    pub(super) stop: Receiver<()>,
}

/// What retention had deleted when the log last said so.
#[derive(Debug, Default)]
pub(super) struct Losses {
    known: u64,
    in_burst: bool,
}

impl Pump {
    pub(super) fn run(mut self) {
        let mut wait = Duration::ZERO;
        while !self.stops_within(wait) {
            self.note_losses();
            wait = match self.step() {
                Ok(true) => Duration::ZERO,
                Ok(false) => POLL,
                Err(error) => self.failed(&error),
            };
        }
        self.commit_cursor();
    }

    /// Sends one group; false when nothing waits.
    fn step(&mut self) -> SyncResult<bool> {
        if self.at.is_none() {
            let at = self.locate()?;
            self.source.seek(at);
            self.moved(at);
            self.succeeded();
        }
        let group =
            self.source.gather(self.config.group_events, self.config.group_bytes).map_err(unreadable)?;
        self.numbers.set_oldest(group.events.first().map(|event| event.appended));
        let upto = group.upto;
        let sends = !group.events.is_empty();
        if sends {
            self.deliver(group)?;
            self.succeeded();
            self.losses.in_burst = false;
        }
        self.moved(upto);
        if self.uncommitted_since.is_some_and(|since| since.elapsed() >= COMMIT_EVERY) {
            self.commit_cursor();
        }
        Ok(sends)
    }

    /// Asks the broker up to where everything is sent.
    fn locate(&mut self) -> SyncResult<u64> {
        // First of all it ends a transaction that a crash has left open: its outcome decides.
        self.producer.recover()?;
        let bookmark = match &self.bookmark {
            Some(bookmark) => bookmark,
            None => {
                let topic = &self.kafka.results_topic;
                let new = Bookmark::new(&self.kafka, &self.name, topic, self.health.clone())?;
                self.bookmark.insert(new)
            }
        };
        let sent = bookmark.read(self.config.timeout)?;
        let sent = sent.and_then(|sent| u64::try_from(sent).ok()).unwrap_or(0);
        let last = self.outbox.last_sequence();
        if sent > last {
            tracing::warn!(
                sent,
                last,
                "the outbox has lost events that were sent: new ones go on behind its last"
            );
            // Or the numbers up to `sent`, used anew, would count as sent.
            self.outbox.commit(last).map_err(unreadable)?;
        }
        Ok(sent.min(last).max(self.outbox.committed()))
    }

    /// Publishes a group, without those of it that nobody can publish.
    fn deliver(&mut self, group: Group) -> SyncResult<()> {
        let mut events: Vec<(StoredEvent, Route)> = Vec::with_capacity(group.events.len());
        for event in group.events {
            if self.buried.contains(&event.sequence) {
                continue;
            }
            match route(&event.payload, &self.config.node, event.sequence) {
                Ok(route) => events.push((event, route)),
                Err(reason) => self.bury(&event, &reason),
            }
        }
        while !events.is_empty() {
            match self.publish(&events, group.upto) {
                Ok(()) => break,
                Err(PublishError::Refused { index, error }) if index < events.len() => {
                    let (event, _) = events.remove(index);
                    self.bury(&event, &error.in_full());
                }
                Err(PublishError::Failed(error) | PublishError::Refused { error, .. }) => {
                    self.source.seek(self.at.unwrap_or_default());
                    return Err(error);
                }
                Err(PublishError::Unknown(error) | PublishError::Lost(error)) => {
                    self.at = None;
                    return Err(error);
                }
            }
        }
        self.numbers.sent.fetch_add(events.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn publish(&mut self, events: &[(StoredEvent, Route)], upto: u64) -> Result<(), PublishError> {
        let records: Vec<Record<'_>> = events
            .iter()
            .map(|(event, route)| Record {
                key: route.key.as_bytes(),
                id: &route.id,
                payload: &event.payload,
            })
            .collect();
        let upto = i64::try_from(upto).unwrap_or(i64::MAX);
        let position = self.bookmark.as_ref().map(|bookmark| bookmark.at(upto)).transpose();
        let position = position.map_err(PublishError::Failed)?;
        self.producer.publish(&self.kafka.results_topic, &records, position.as_ref())
    }

    fn bury(&mut self, event: &StoredEvent, reason: &str) {
        let sequence = event.sequence;
        self.buried.insert(sequence);
        self.numbers.dead_lettered.fetch_add(1, Ordering::Relaxed);
        let dropped = self.dead.bury(event, reason).unwrap_or_else(|error| {
            tracing::error!(sequence, %error, "a dead letter cannot be written: the event is lost");
            1
        });
        self.numbers.dead_letters_dropped.fetch_add(dropped, Ordering::Relaxed);
        tracing::warn!(sequence, reason, "an event can never be published and went to the dead letters");
    }

    fn moved(&mut self, at: u64) {
        self.at = Some(at);
        self.buried.retain(|sequence| *sequence > at);
        self.numbers.sent_sequence.store(at, Ordering::Release);
        if at > self.outbox.committed() && self.uncommitted_since.is_none() {
            self.uncommitted_since = Some(Instant::now());
        }
    }

    fn commit_cursor(&mut self) {
        let Some(at) = self.at.filter(|_| self.uncommitted_since.is_some()) else { return };
        self.uncommitted_since = None;
        if let Err(error) = self.outbox.commit(at) {
            // A disk that is full: the broker knows the position, and the next one is written in a second.
            tracing::warn!(error = %error, "cannot note in the outbox what is sent");
        }
    }

    fn succeeded(&mut self) {
        self.backoff.succeed();
        self.numbers.worked();
    }

    /// Notes a failure; how long to wait now.
    fn failed(&mut self, error: &SyncError) -> Duration {
        let text = error.in_full();
        if !error.is_transient() {
            // For the uplink a refusal is the link's: nothing gets through until a person has acted.
            self.health.failed(error);
        }
        if self.numbers.failed(text.clone()) {
            tracing::warn!(error = text, "events wait in the outbox: they cannot be sent");
        }
        self.commit_cursor();
        self.look();
        self.backoff.fail()
    }

    /// Waits; true when it is time to end. A long wait keeps the numbers up to date.
    fn stops_within(&mut self, wait: Duration) -> bool {
        let start = Instant::now();
        loop {
            let left = wait.saturating_sub(start.elapsed());
            if self.stop.recv_timeout(left.min(LOOK)) != Err(RecvTimeoutError::Timeout) {
                return true;
            }
            if left <= LOOK {
                return false;
            }
            self.look();
        }
    }

    /// Brings the numbers up to date while nothing is sent.
    fn look(&mut self) {
        // What is oldest changes only when retention deletes it, and looking means reading a segment.
        if !self.note_losses() && self.numbers.knows_oldest() {
            return;
        }
        if self.at.is_none() {
            self.source.seek(self.outbox.committed());
        }
        let oldest = self.source.oldest();
        self.numbers.set_oldest(oldest);
    }

    /// Says once a burst that the outbox deletes events which were not sent; whether it has just done so.
    fn note_losses(&mut self) -> bool {
        let stats = self.outbox.stats();
        let lost = stats.dropped_by_size + stats.dropped_by_age;
        let more = lost - self.losses.known.min(lost);
        self.losses.known = lost;
        if more > 0 && !std::mem::replace(&mut self.losses.in_burst, true) {
            tracing::warn!(lost, "the outbox is at its bound: events are deleted that were not sent");
        }
        more > 0
    }
}

fn unreadable(error: OutboxError) -> SyncError {
    SyncError::transient(Link::Disk, "the outbox").because(error)
}

#[cfg(test)]
mod tests;
