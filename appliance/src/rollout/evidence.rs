//! What is observed of a version: during its trial, and after its promotion.
//!
//! After a promotion the version is compared with the limits for `rollout.monitor_time`, and rolled back where it exceeds
//! one:
//! - Time, failures, latencies and comparisons add up over all processes in which the version serves; the journal keeps them,
//!   every [`SAVE_INTERVAL`] and at the end of the process. A process that dies monitors the time since again.
//! - Latency is compared with what the version before did in the process that promoted this one: not after a restart, where
//!   the device or the number of lanes may be another.
//! - Labels are compared with the version before while that is loaded as a standby: not after a restart, and not where an
//!   operator promoted the version.
//! - While another version is downloaded or on trial, monitoring continues. Where the version that serves is rolled back
//!   meanwhile, the trial of the other one starts again beside the one that serves then; where the other one is promoted
//!   first, it is monitored in its place.
//! - A version with which processes die is not detected here: the journal counts those (`entry::Starts`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{Monitored, Starts};
use super::evaluate::Evidence;
use crate::serving::{Comparison, LoadedModel, VersionCounts};

/// How often a trial is evaluated.
const TRIAL_INTERVAL: Duration = Duration::from_millis(100);
/// How often a promoted version is evaluated.
const MONITOR_INTERVAL: Duration = Duration::from_secs(1);
/// How often the progress of monitoring is written to the journal: each time takes an fsync.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// Time between a rollback that failed and the next attempt.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// A trial under way.
pub(super) struct Observed {
    model: Arc<LoadedModel>,
    serving: Arc<LoadedModel>,
    pub(super) comparison: Arc<Comparison>,
    began: Instant,
    /// What both had done when the trial began.
    model_before: VersionCounts,
    serving_before: VersionCounts,
    pub(super) next_check: Instant,
}

impl Observed {
    /// A trial that begins now.
    pub(super) fn new(model: &Arc<LoadedModel>, serving: &Arc<LoadedModel>) -> Self {
        let now = Instant::now();
        Self {
            model: Arc::clone(model),
            serving: Arc::clone(serving),
            comparison: Arc::default(),
            began: now,
            model_before: model.stats.read(),
            serving_before: serving.stats.read(),
            next_check: now,
        }
    }

    /// The evidence by now, if it is time to evaluate it.
    pub(super) fn check(&mut self, now: Instant) -> Option<Evidence> {
        if self.next_check > now {
            return None;
        }
        self.next_check = now + TRIAL_INTERVAL;
        let (compared, disagreed) = self.comparison.read();
        Some(Evidence {
            time: self.began.elapsed(),
            trial: self.model.stats.read().since(&self.model_before),
            serving: self.serving.stats.read().since(&self.serving_before),
            compared,
            disagreed,
        })
    }
}

/// The version that was promoted last, while it is monitored.
pub(super) struct Promoted {
    pub(super) model: Arc<LoadedModel>,
    /// What had been observed when this process began with it.
    earlier: Monitored,
    began: Instant,
    /// What it had done in this process by then.
    done: VersionCounts,
    comparison: Arc<Comparison>,
    pub(super) next_check: Instant,
    saved: Instant,
}

impl Monitored {
    /// Of a version that takes the place of `before` now.
    pub(super) fn new(before: &LoadedModel, ordered: bool, boot: &str) -> Self {
        let (time, done, before) = (Duration::ZERO, VersionCounts::default(), before.stats.read());
        Self { time, done, before, compared: 0, disagreed: 0, ordered, starts: Starts::first(boot) }
    }

    fn evidence(&self) -> Evidence {
        Evidence {
            time: self.time,
            trial: self.done.clone(),
            serving: self.before.clone(),
            compared: self.compared,
            disagreed: self.disagreed,
        }
    }
}

impl Promoted {
    /// Continues the monitoring of a version.
    pub(super) fn resume(model: &Arc<LoadedModel>, earlier: Monitored) -> Self {
        let now = Instant::now();
        Self {
            model: Arc::clone(model),
            earlier,
            began: now,
            done: model.stats.read(),
            comparison: Arc::default(),
            next_check: now + MONITOR_INTERVAL,
            saved: now,
        }
    }

    /// Where the labels of both versions are counted; `None` where they are not compared.
    pub(super) fn comparison(&self) -> Option<Arc<Comparison>> {
        (!self.earlier.ordered).then(|| Arc::clone(&self.comparison))
    }

    /// What has been observed by now, for the journal.
    pub(super) fn monitored(&self) -> Monitored {
        let (compared, disagreed) = self.comparison.read();
        Monitored {
            time: self.earlier.time + self.began.elapsed(),
            done: self.earlier.done.and(&self.model.stats.read().since(&self.done)),
            compared: self.earlier.compared + compared,
            disagreed: self.earlier.disagreed + disagreed,
            ..self.earlier.clone()
        }
    }

    /// The evidence by now, and whether it is time to write it to the journal.
    pub(super) fn check(&mut self, now: Instant) -> (Evidence, bool) {
        self.next_check = now + MONITOR_INTERVAL;
        (self.monitored().evidence(), self.saved.elapsed() >= SAVE_INTERVAL)
    }

    /// It has been written to the journal.
    pub(super) fn saved(&mut self) {
        self.saved = Instant::now();
    }

    /// Pauses after a rollback that failed.
    pub(super) fn postpone(&mut self) {
        self.next_check = Instant::now() + RETRY_INTERVAL;
    }
}
