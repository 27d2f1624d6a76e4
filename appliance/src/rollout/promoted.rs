//! What follows a promotion: the new version is held against the limits for `rollout.monitor_time`, and rolled back where it
//! passes one.
//!
//! - Time, failures, latencies and comparisons add up over all processes in which the version serves; the journal keeps them,
//!   every [`SAVE_INTERVAL`] and at the end of the process. A box that dies monitors the rest of the time again.
//! - Latency is compared with what the version before did in the process that promoted this one: not after a restart, where the
//!   device or the number of lanes may be another.
//! - Labels are compared with the version before while that is loaded as a standby: not after a restart, and not where an
//!   operator promoted the version.
//! - While another version is downloaded or on trial, monitoring goes on. Where the version that serves is rolled back
//!   meanwhile, the other one's trial begins anew beside the one that serves then; where the other one is promoted first, it is
//!   monitored in its place.
//! - A version with which processes die is not seen here: `crashes` counts those.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::crashes::Starts;
use super::entry::Monitored;
use super::task::Task;
use super::verdict::{Evidence, judge_promoted};
use crate::serving::{Comparison, LoadedModel, VersionCounts};

/// How often a promoted version is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is written down how far its monitoring is: each time takes an fsync.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// How long after a rollback that did not work the next one is tried.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// A version that was promoted, while it is monitored.
pub(super) struct Promoted {
    model: Arc<LoadedModel>,
    /// What had been seen of it when this process began with it.
    earlier: Monitored,
    began: Instant,
    /// What it had done in this process by then.
    done: VersionCounts,
    comparison: Arc<Comparison>,
    looked: Instant,
    saved: Instant,
}

impl Monitored {
    /// Of a version that takes the place of `before` now.
    pub(super) fn new(before: &LoadedModel, ordered: bool) -> Self {
        let (time, done, before) = (Duration::ZERO, VersionCounts::default(), before.stats.read());
        Self { time, done, before, compared: 0, disagreed: 0, ordered, starts: Starts::first() }
    }
}

impl Promoted {
    /// Goes on with the monitoring of a version.
    pub(super) fn go_on(model: &Arc<LoadedModel>, earlier: Monitored) -> Self {
        let (now, done) = (Instant::now(), model.stats.read());
        let comparison = Arc::default();
        Self { model: Arc::clone(model), earlier, began: now, done, comparison, looked: now, saved: now }
    }

    /// Where the labels of both versions are counted; `None` where they are not held against each other.
    pub(super) fn comparison(&self) -> Option<Arc<Comparison>> {
        (!self.earlier.ordered).then(|| Arc::clone(&self.comparison))
    }

    /// When it is to be looked at next.
    pub(super) fn next_look(&self) -> Instant {
        self.looked + POLL_INTERVAL
    }

    /// What has been seen of it by now.
    fn seen(&self) -> Monitored {
        let (compared, disagreed) = self.comparison.read();
        Monitored {
            time: self.earlier.time + self.began.elapsed(),
            done: self.earlier.done.and(&self.model.stats.read().since(&self.done)),
            compared: self.earlier.compared + compared,
            disagreed: self.earlier.disagreed + disagreed,
            ..self.earlier.clone()
        }
    }
}

impl Task {
    /// Goes on with the monitoring that the journal knows of, where the version that it is about serves.
    pub(super) fn go_on_monitoring(&mut self) {
        let entry = self.context.journal.entry(self.name());
        let Some(current) = self.followed.slot.current() else { return };
        let serves = entry.serving.map(|placed| placed.origin());
        let (Some(mut earlier), true) = (entry.monitored, serves.is_some() && serves == current.origin)
        else {
            return;
        };
        // Times of another process say nothing about this one, whose device and lanes may be others.
        earlier.before = VersionCounts::default();
        if self.promoted.is_none() && earlier.time < self.context.settings.rollout.monitor_time {
            tracing::info!(
                model = self.name(),
                version = current.describe(),
                seconds = earlier.time.as_secs(),
                "the monitoring of the version that serves goes on"
            );
            self.monitor(Promoted::go_on(&current, earlier));
        }
    }

    /// Monitors a version from now on.
    pub(super) fn monitor(&mut self, promoted: Promoted) {
        let comparison = promoted.comparison();
        self.promoted = Some(promoted);
        self.followed.slot.change(|routes| routes.monitored = comparison);
    }

    /// Looks at the version that was promoted last, and goes back to the one before if it passes a limit. Says whether it did.
    pub(super) async fn check_promoted(&mut self) -> bool {
        let Some(promoted) = &mut self.promoted else { return false };
        if promoted.next_look() > Instant::now() {
            return false;
        }
        promoted.looked = Instant::now();
        let current = self.followed.slot.current();
        if !current.is_some_and(|current| Arc::ptr_eq(&current, &promoted.model)) {
            self.forget_promoted();
            return false;
        }
        let seen = promoted.seen();
        let save = promoted.saved.elapsed() >= SAVE_INTERVAL;
        let evidence = Evidence {
            time: seen.time,
            trial: seen.done.clone(),
            serving: seen.before.clone(),
            compared: seen.compared,
            disagreed: seen.disagreed,
        };
        let config = &self.context.settings.rollout;
        let over = seen.time >= config.monitor_time;
        let Some(reason) = judge_promoted(&evidence, config) else {
            if over {
                self.forget_promoted();
                self.write_down(None).await;
            } else if save {
                promoted.saved = Instant::now();
                self.write_down(Some(seen)).await;
            }
            return false;
        };
        // Out of sight of `back`, which ends the monitoring where it works.
        let promoted = self.promoted.take();
        let reason = format!("after it was promoted, {reason}");
        tracing::error!(model = self.name(), reason, "the version that serves is rolled back");
        let Err(refusal) = self.back(&reason).await else { return true };
        tracing::error!(model = self.name(), %refusal, "it could not be rolled back, so it serves on");
        self.board.note(|status| {
            status.error = Some(format!("{reason}; it could not be rolled back: {refusal}"));
        });
        if over {
            self.forget_promoted();
            self.write_down(None).await;
        } else if let Some(mut promoted) = promoted {
            // What kept it from going back may pass.
            promoted.looked = Instant::now() + RETRY_INTERVAL;
            self.promoted = Some(promoted);
        }
        false
    }

    /// Writes down how far the monitoring is, for the next process, and that this one is stopped.
    pub(super) async fn save_promoted(&mut self) {
        if let Some(seen) = self.promoted.as_ref().map(Promoted::seen) {
            self.write_down(Some(Monitored { starts: Starts::default(), ..seen })).await;
        }
    }

    pub(super) fn forget_promoted(&mut self) {
        self.promoted = None;
        self.followed.slot.change(|routes| routes.monitored = None);
    }

    async fn write_down(&self, seen: Option<Monitored>) {
        if let Err(error) = self.context.note(self.name(), |entry| entry.monitored = seen).await {
            tracing::warn!(%error, "how far a version has been monitored could not be written down");
        }
    }
}
