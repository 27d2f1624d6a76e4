//! The thread of the uplink: find out what is sent already, then group after group.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::UplinkConfig;
use super::account::{Account, Sent};
use super::dead::DeadLetters;
use super::source::{Group, Route, Source, route};
use super::status::Numbers;
use crate::backoff::Backoff;
use crate::error::{Link, SyncError, SyncResult};
use crate::event::{Event, EventBody, OutboxChange};
use crate::health::LinkHealth;
use crate::kafka::{KafkaConfig, PublishError, Record};
use crate::outbox::{Outbox, OutboxError, StoredEvent};

/// How often the outbox is looked at while nothing waits. It also groups what comes in between: ten
/// transactions a second at most while there is little to do.
const POLL: Duration = Duration::from_millis(100);
/// How often the numbers are brought up to date while the broker is away.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How far the outbox's cursor may be behind. Each step of it is forced to the disk, beside the events that
/// requests wait for; what is sent is known to the broker anyhow.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Pump {
    config: UplinkConfig,
    topic: String,
    account: Account,
    outbox: Arc<Outbox>,
    source: Source,
    dead: DeadLetters,
    backoff: Backoff,
    health: LinkHealth,
    numbers: Arc<Numbers>,
    /// Everything up to this sequence is sent; `None` while only the broker knows.
    at: Option<u64>,
    /// Up to where this process knows that everything is sent, whatever the bookmark says.
    confirmed: u64,
    /// Since when the outbox's cursor is behind `at`.
    uncommitted_since: Option<Instant>,
    /// Dead letters of the group under way: a group that has to be sent again leaves them out.
    buried: BTreeSet<u64>,
    /// Events that the topic has refused since it took one.
    rejections: u32,
    losses: Losses,
    stop: Receiver<()>,
}

/// What retention had deleted when the log last said so.
#[derive(Debug, Default)]
pub(super) struct Losses {
    known: u64,
    in_burst: bool,
}

impl Pump {
    #[allow(clippy::too_many_arguments, reason = "made in one place, of parts that have nothing in common")]
    pub(super) fn new(
        config: UplinkConfig,
        kafka: KafkaConfig,
        account: Account,
        outbox: Arc<Outbox>,
        source: Source,
        health: LinkHealth,
        numbers: Arc<Numbers>,
        stop: Receiver<()>,
    ) -> Self {
        Self {
            dead: DeadLetters::new(config.dead_letter_dir.clone(), config.dead_letter_bytes),
            backoff: Backoff::new(config.first_wait, config.longest_wait),
            config,
            topic: kafka.results_topic,
            account,
            outbox,
            source,
            health,
            numbers,
            at: None,
            confirmed: 0,
            uncommitted_since: None,
            buried: BTreeSet::new(),
            rejections: 0,
            losses: Losses::default(),
            stop,
        }
    }

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
            self.succeeded();
            self.moved(at);
        }
        // A copy sends what it shares with its original, and then goes on by itself.
        let shared = (self.outbox.epochs().current_first() - 1).min(self.outbox.last_sequence());
        let copied = self.account.identity().is_copied();
        if copied && self.at.is_some_and(|at| at >= shared) {
            return self.renew("copied", self.at.unwrap_or_default()).map(|()| true);
        }
        let bound = if copied { shared } else { u64::MAX };
        let (events, bytes) = (self.config.group_events, self.config.group_bytes);
        let group = self.source.gather(bound, events, bytes).map_err(unreadable)?;
        self.numbers.set_oldest(group.events.first().map(|event| event.appended));
        let upto = group.upto;
        let sends = !group.events.is_empty();
        if sends {
            let delivered = self.deliver(group);
            if !matches!(delivered, Ok(true)) {
                self.source.seek(self.at.unwrap_or_default());
                return delivered;
            }
            self.succeeded();
            self.losses.in_burst = false;
        }
        self.moved(upto);
        if self.uncommitted_since.is_some_and(|since| since.elapsed() >= COMMIT_EVERY) {
            self.commit_cursor();
        }
        Ok(sends || copied)
    }

    /// Asks the broker up to where everything is sent.
    fn locate(&mut self) -> SyncResult<u64> {
        let sent = self.account.take_over()?;
        let last = self.outbox.last_sequence();
        let common = self.outbox.epochs().common(last, &sent.epochs, sent.upto);
        let at = common.max(self.outbox.committed()).max(self.confirmed).min(last);
        if common < sent.upto {
            let upto = sent.upto;
            tracing::error!(sent = upto, common, last, "the outbox is not the one whose events were sent");
            // The bookmark may be that of another, or of a history that is gone: it must not move any more.
            self.renew("restored", at)?;
            return self.locate_anew(at);
        }
        Ok(at)
    }

    /// The identity is new: nothing was sent under it.
    fn locate_anew(&mut self, at: u64) -> SyncResult<u64> {
        self.account.take_over()?;
        Ok(at)
    }

    /// Goes on under a new identity, behind `at`.
    fn renew(&mut self, cause: &'static str, at: u64) -> SyncResult<()> {
        self.at = None;
        // The new identity has no bookmark: what is sent is known from here alone.
        self.outbox.commit(at).map_err(unreadable)?;
        let from = self.account.identity().id().to_owned();
        self.account.renew().map_err(|error| {
            SyncError::transient(Link::Disk, "the outbox cannot get another identity").because(error)
        })?;
        let to = self.account.identity().id().to_owned();
        self.numbers.renewed.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            cause,
            from,
            to,
            sent = at,
            "the data directory is a copy, or an earlier state, of another: the outbox goes on under a new identity"
        );
        let change = OutboxChange { cause: cause.to_owned(), from, to, sent: at };
        // Nobody waits for it: without room for it the log and the metric have said the same.
        drop(self.outbox.append_event(&Event::new(&self.config.node, EventBody::Outbox(change))));
        Ok(())
    }

    /// Publishes a group, without those of it that nobody can publish; false when the broker has to be asked anew first.
    fn deliver(&mut self, group: Group) -> SyncResult<bool> {
        let mut events: Vec<(StoredEvent, Route)> = Vec::with_capacity(group.events.len());
        for event in group.events {
            if self.buried.contains(&event.sequence) {
                continue;
            }
            match route(&event.payload, &self.config.node, event.sequence) {
                Ok(route) => events.push((event, route)),
                Err(reason) => self.bury(&event, &reason)?,
            }
        }
        while !events.is_empty() {
            match self.publish(&events, group.upto) {
                Ok(()) => {
                    self.rejections = 0;
                    break;
                }
                Err(PublishError::Refused { index, error }) if index < events.len() => {
                    self.reject(&error)?;
                    let (event, _) = events.remove(index);
                    self.bury(&event, &error.in_full())?;
                }
                // To begin anew shuts out another process of the same identity: what that one has sent is asked first.
                Err(PublishError::Anew) => {
                    self.at = None;
                    return Ok(false);
                }
                Err(PublishError::Failed(error) | PublishError::Refused { error, .. }) => {
                    self.at = None;
                    return Err(error);
                }
                Err(PublishError::Fenced(error)) => {
                    self.at = None;
                    self.numbers.fenced.fetch_add(1, Ordering::Relaxed);
                    let identity = self.account.identity().id();
                    tracing::error!(identity, "another process publishes under the identity of this outbox");
                    return Err(error);
                }
                Err(PublishError::Unknown(error) | PublishError::Lost(error)) => {
                    self.at = None;
                    return Err(error);
                }
            }
        }
        self.numbers.sent.fetch_add(events.len() as u64, Ordering::Relaxed);
        Ok(true)
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
        let sent = Sent { upto, epochs: self.outbox.epochs().upto(upto) };
        self.account.publish(&records, &sent)
    }

    /// The topic refused an event: an error when it has refused so many that the topic is at fault.
    fn reject(&mut self, error: &SyncError) -> SyncResult<()> {
        if self.rejections >= self.config.max_rejections {
            let what = format!(
                "topic {} has refused {} events in a row (kafka.max_rejections) and taken none: correct the topic, \
                 the events wait",
                self.topic, self.rejections
            );
            return Err(SyncError::permanent(Link::Kafka, what).because(error.in_full()));
        }
        self.rejections += 1;
        Ok(())
    }

    /// Gives an event up once it is among the dead letters, and not before.
    fn bury(&mut self, event: &StoredEvent, reason: &str) -> SyncResult<()> {
        let sequence = event.sequence;
        let dropped = self.dead.bury(event, reason).map_err(|error| {
            self.numbers.dead_letter_failures.fetch_add(1, Ordering::Relaxed);
            let what =
                format!("cannot write the dead letter of event {sequence}: it waits, and what follows it");
            SyncError::transient(Link::Disk, what).because(error)
        })?;
        self.buried.insert(sequence);
        self.numbers.dead_lettered.fetch_add(1, Ordering::Relaxed);
        self.numbers.dead_letters_dropped.fetch_add(dropped, Ordering::Relaxed);
        tracing::warn!(sequence, reason, "an event can never be published and went to the dead letters");
        Ok(())
    }

    fn moved(&mut self, at: u64) {
        self.at = Some(at);
        self.confirmed = self.confirmed.max(at);
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
        if !error.is_transient() || error.link() == Link::Disk {
            // For the uplink a refusal is the link's: nothing gets through until a person has acted. And so is a
            // disk that takes no dead letters.
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
            if self.stop.recv_timeout(left.min(POLL_INTERVAL)) != Err(RecvTimeoutError::Timeout) {
                return true;
            }
            if left <= POLL_INTERVAL {
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
