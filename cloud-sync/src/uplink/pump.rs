//! The thread of the uplink: finds out what is sent already, then sends group after group.

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

/// Poll interval of the outbox while there is nothing to send. It also batches events: at most ten transactions per
/// second under low load.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Interval of status updates while the broker is unavailable.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum delay of the outbox's cursor. Each update of it is synced to disk, beside the events that requests wait
/// for; the broker knows what is sent anyway.
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
    /// Everything up to this sequence is sent; `None` while only the broker knows it.
    at: Option<u64>,
    /// Sequence up to which this process knows that everything is sent, whatever the bookmark says.
    confirmed: u64,
    /// Since when the outbox's cursor is behind `at`.
    uncommitted_since: Option<Instant>,
    /// Dead letters of the current group: skipped when the group has to be sent again.
    in_dead_letters: BTreeSet<u64>,
    /// Number of events that the topic has refused since it last accepted one.
    rejections: u32,
    losses: Losses,
    stop: Receiver<()>,
}

/// Events deleted by retention, as of the last log message.
#[derive(Debug, Default)]
pub(super) struct Losses {
    known: u64,
    in_burst: bool,
}

impl Pump {
    #[allow(clippy::too_many_arguments, reason = "called in one place, with unrelated parts")]
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
            backoff: Backoff::new(config.backoff_initial, config.backoff_max),
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
            in_dead_letters: BTreeSet::new(),
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
                Ok(false) => POLL_INTERVAL,
                Err(error) => self.failed(&error),
            };
        }
        self.commit_cursor();
    }

    /// Sends one group; false when there is nothing to send.
    fn step(&mut self) -> SyncResult<bool> {
        if self.at.is_none() {
            let at = self.locate()?;
            self.source.seek(at);
            self.succeeded();
            self.moved(at);
        }
        // A copy sends what it shares with its original, and then continues under its own identity.
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

    /// Queries the broker for the sequence up to which everything is sent.
    fn locate(&mut self) -> SyncResult<u64> {
        let sent = self.account.take_over()?;
        let last = self.outbox.last_sequence();
        let common = self.outbox.epochs().common(last, &sent.epochs, sent.upto);
        let at = common.max(self.outbox.committed()).max(self.confirmed).min(last);
        if common < sent.upto {
            let upto = sent.upto;
            tracing::error!(
                sent = upto,
                common,
                last,
                "the outbox does not match the position in the topic: it was restored or replaced"
            );
            // The bookmark may belong to another outbox, or to a history that is gone: it must not be moved any more.
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

    /// Continues under a new identity, after `at`.
    fn renew(&mut self, cause: &'static str, at: u64) -> SyncResult<()> {
        self.at = None;
        // The new identity has no bookmark: the outbox's cursor alone records what is sent.
        self.outbox.commit(at).map_err(unreadable)?;
        let from = self.account.identity().id().to_owned();
        self.account.renew().map_err(|error| {
            SyncError::transient(Link::Disk, "cannot change the identity of the outbox").because(error)
        })?;
        let to = self.account.identity().id().to_owned();
        self.numbers.renewed.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            cause,
            from,
            to,
            sent = at,
            "the data directory is a copy, or an earlier state, of another: the outbox continues under a new identity"
        );
        let change = OutboxChange { cause: cause.to_owned(), from, to, sent: at };
        // Not awaited: if there is no space for it, the log and the metric report the same.
        drop(self.outbox.append_event(&Event::new(&self.config.node, EventBody::Outbox(change))));
        Ok(())
    }

    /// Publishes a group, without its unpublishable events; false when the broker must be queried again first.
    fn deliver(&mut self, group: Group) -> SyncResult<bool> {
        let mut events: Vec<(StoredEvent, Route)> = Vec::with_capacity(group.events.len());
        for event in group.events {
            if self.in_dead_letters.contains(&event.sequence) {
                continue;
            }
            match route(&event.payload, &self.config.node, event.sequence) {
                Ok(route) => events.push((event, route)),
                Err(reason) => self.dead_letter(&event, &reason)?,
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
                    self.dead_letter(&event, &error.in_full())?;
                }
                // Recreating the client fences another process of the same identity: first query what that one has
                // sent.
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

    /// Counts an event that the topic refused: an error when it has refused so many that the topic itself must be
    /// wrong.
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

    /// Gives an event up, only after it is written to the dead letters.
    fn dead_letter(&mut self, event: &StoredEvent, reason: &str) -> SyncResult<()> {
        let sequence = event.sequence;
        let dropped = self.dead.write(event, reason).map_err(|error| {
            self.numbers.dead_letter_failures.fetch_add(1, Ordering::Relaxed);
            let what = format!(
                "cannot write the dead letter of event {sequence}: it waits, and so do the following events"
            );
            SyncError::transient(Link::Disk, what).because(error)
        })?;
        self.in_dead_letters.insert(sequence);
        self.numbers.dead_lettered.fetch_add(1, Ordering::Relaxed);
        self.numbers.dead_letters_dropped.fetch_add(dropped, Ordering::Relaxed);
        tracing::warn!(sequence, reason, "an event cannot be published; written to the dead letters");
        Ok(())
    }

    fn moved(&mut self, at: u64) {
        self.at = Some(at);
        self.confirmed = self.confirmed.max(at);
        self.in_dead_letters.retain(|sequence| *sequence > at);
        self.numbers.sent_sequence.store(at, Ordering::Release);
        if at > self.outbox.committed() && self.uncommitted_since.is_none() {
            self.uncommitted_since = Some(Instant::now());
        }
    }

    fn commit_cursor(&mut self) {
        let Some(at) = self.at.filter(|_| self.uncommitted_since.is_some()) else { return };
        self.uncommitted_since = None;
        if let Err(error) = self.outbox.commit(at) {
            // A full disk: the broker knows the position, and the next one is written in a second.
            tracing::warn!(error = %error, "cannot update the cursor of the outbox");
        }
    }

    fn succeeded(&mut self) {
        self.backoff.succeed();
        self.numbers.worked();
    }

    /// Records a failure; returns the wait before the next attempt.
    fn failed(&mut self, error: &SyncError) -> Duration {
        let text = error.in_full();
        if !error.is_transient() || error.link() == Link::Disk {
            // For the uplink a refusal is a failure of the link: nothing is sent until the configuration is
            // corrected. So is a disk that accepts no dead letters.
            self.health.failed(error);
        }
        if self.numbers.failed(text.clone()) {
            tracing::warn!(error = text, "cannot send events; they wait in the outbox");
        }
        self.commit_cursor();
        self.update_oldest();
        self.backoff.fail()
    }

    /// Waits; true when the thread has to stop. A long wait keeps the status up to date.
    fn stops_within(&mut self, wait: Duration) -> bool {
        let start = Instant::now();
        loop {
            let left = wait.saturating_sub(start.elapsed());
            if self.stop.recv_timeout(left.min(STATUS_INTERVAL)) != Err(RecvTimeoutError::Timeout) {
                return true;
            }
            if left <= STATUS_INTERVAL {
                return false;
            }
            self.update_oldest();
        }
    }

    /// Updates the status while nothing is sent.
    fn update_oldest(&mut self) {
        // The oldest event changes only when retention deletes it, and finding it means reading a segment.
        if !self.note_losses() && self.numbers.knows_oldest() {
            return;
        }
        if self.at.is_none() {
            self.source.seek(self.outbox.committed());
        }
        let oldest = self.source.oldest();
        self.numbers.set_oldest(oldest);
    }

    /// Logs once per burst that the outbox deletes unsent events; returns whether it has just deleted some.
    fn note_losses(&mut self) -> bool {
        let stats = self.outbox.stats();
        let lost = stats.dropped_by_size + stats.dropped_by_age;
        let more = lost - self.losses.known.min(lost);
        self.losses.known = lost;
        if more > 0 && !std::mem::replace(&mut self.losses.in_burst, true) {
            tracing::warn!(lost, "the outbox is at its limit: unsent events are deleted");
        }
        more > 0
    }
}

fn unreadable(error: OutboxError) -> SyncError {
    SyncError::transient(Link::Disk, "the outbox").because(error)
}

#[cfg(test)]
mod tests;
