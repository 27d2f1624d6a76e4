//! Effects of a rollout: on routes and loaded versions, the journal and the disk.

use std::sync::Arc;
use std::time::Instant;

use super::driver::Driver;
use super::entry::{DeployedVersion, Entry, Monitored, Starts};
use super::evaluate::Stage;
use super::evidence::{Observed, Promoted};
use super::loading::retire;
use super::state_machine::{Change, Swap};
use crate::models::{Origin, StoredBundle};
use crate::serving::{Trial, TrialKind, VersionCounts};

impl Driver {
    pub(super) fn start_trial(&mut self, stage: Stage) {
        let (Some(candidate), Some(serving)) = (&self.candidate, self.followed.slot.current()) else {
            return;
        };
        let kind = match stage {
            Stage::Shadow => TrialKind::Shadow,
            Stage::Canary => TrialKind::Canary { part: self.context.settings.rollout.canary / 100.0 },
        };
        self.context.metrics.on_trial(self.name(), &candidate.model.version);
        let observed = Observed::new(candidate, &serving);
        let comparison = Arc::clone(&observed.comparison);
        let trial = Trial { model: Arc::clone(candidate), kind, comparison };
        self.followed.slot.change(|routes| routes.trial = Some(trial));
        self.trial = Some(observed);
    }

    /// Drops the candidate, on trial or not.
    pub(super) fn discard(&mut self) {
        self.trial = None;
        self.followed.slot.change(|routes| routes.trial = None);
        // Its lanes are not ended here, where that would block.
        self.candidate.take().into_iter().for_each(retire);
    }

    /// Changes the version that serves. The journal has been written.
    pub(super) fn swap(&mut self, swap: Swap) {
        let model = match swap {
            Swap::Promoted => self.candidate.take(),
            Swap::RolledBack | Swap::Restored => self.replacement.take(),
        };
        let Some(model) = model else {
            tracing::error!(
                model = self.name(),
                ?swap,
                "no version is loaded; the current one keeps serving"
            );
            return;
        };
        if swap != Swap::Restored {
            let monitored = self.context.journal.entry(self.name()).monitored;
            self.promoted = monitored.map(|monitored| Promoted::resume(&model, monitored));
            // A trial beside the version that served is over.
            self.trial = None;
        }
        let comparison = self.promoted.as_ref().and_then(Promoted::comparison);
        let mut unused = Vec::new();
        self.followed.slot.change(|routes| {
            let before = routes.current.replace(Arc::clone(&model));
            if swap == Swap::Restored {
                unused.extend(before);
                return;
            }
            // A version that was rolled back is no way back.
            let (standby, undone) = if swap == Swap::Promoted { (before, None) } else { (None, before) };
            let old = std::mem::replace(&mut routes.standby, standby);
            unused.extend(old.filter(|old| !Arc::ptr_eq(old, &model)));
            unused.extend(undone);
            routes.trial = None;
            routes.monitored = comparison;
        });
        drop(model);
        unused.into_iter().for_each(retire);
        if swap == Swap::Restored {
            tracing::info!(model = self.name(), "the version of the journal serves again");
            self.resume_monitoring();
        } else {
            self.standby_until = Some(Instant::now() + self.context.settings.rollout.keep_previous_loaded);
            self.status.update(|status| status.promoted += 1);
        }
        if let Some(current) = self.followed.slot.current() {
            self.context.metrics.serving(&current.labels(self.name(), self.context.loader.device.kind));
        }
    }

    pub(super) fn unload_standby(&mut self) {
        self.standby_until = None;
        let mut standby = None;
        self.followed.slot.change(|routes| standby = routes.standby.take());
        standby.into_iter().for_each(retire);
    }

    /// Continues the monitoring that the journal knows of, if the version that it is about serves.
    pub(super) fn resume_monitoring(&mut self) {
        let entry = self.context.journal.entry(self.name());
        let Some(current) = self.followed.slot.current() else { return };
        let serves = entry.serving.map(|placed| placed.origin());
        let (Some(mut earlier), true) = (entry.monitored, serves.is_some() && serves == current.origin)
        else {
            return;
        };
        // Latencies of another process say nothing about this one, whose device and lanes may be others.
        earlier.before = VersionCounts::default();
        if self.promoted.is_none() && earlier.time < self.context.settings.rollout.monitor_time {
            tracing::info!(
                model = self.name(),
                version = current.describe(),
                seconds = earlier.time.as_secs(),
                "the monitoring of the version that serves continues"
            );
            let promoted = Promoted::resume(&current, earlier);
            let comparison = promoted.comparison();
            self.promoted = Some(promoted);
            self.followed.slot.change(|routes| routes.monitored = comparison);
        }
    }

    pub(super) fn forget_promoted(&mut self) {
        self.promoted = None;
        self.followed.slot.change(|routes| routes.monitored = None);
    }

    pub(super) async fn end_monitoring(&mut self) {
        self.forget_promoted();
        self.write_monitored(None).await;
    }

    /// Writes down how far monitoring is; with `stopped` also that this process did not die of the version.
    pub(super) async fn save_monitoring(&mut self, stopped: bool) {
        let Some(promoted) = &mut self.promoted else { return };
        promoted.saved();
        let mut monitored = promoted.monitored();
        if stopped {
            monitored.starts = Starts::default();
        }
        self.write_monitored(Some(monitored)).await;
    }

    async fn write_monitored(&mut self, monitored: Option<Monitored>) {
        self.write_or_log("the progress of monitoring", move |entry| entry.monitored = monitored).await;
    }

    pub(super) async fn reject(&mut self, origin: Origin, reason: String) {
        let change = move |entry: &mut Entry| entry.reject_with_tag(&origin, &reason);
        self.write_or_log("that a version is rejected; it will be tried again", change).await;
        self.status.update(|status| status.rejected += 1);
    }

    pub(super) async fn drop_serving(&mut self, placed: DeployedVersion) {
        let current = self.followed.slot.current().and_then(|current| current.origin.clone());
        let change = move |entry: &mut Entry| entry.drop_serving(&placed, current.as_ref());
        self.write_or_log("the version that serves", change).await;
    }

    /// A change that the rollout can do without.
    async fn write_or_log(&mut self, what: &'static str, change: impl FnOnce(&mut Entry) + Send + 'static) {
        if let Err(error) = self.context.change_entry(self.name(), change).await {
            tracing::error!(model = self.name(), %error, what, "the journal cannot be written");
        }
    }

    pub(super) async fn write(&mut self, change: Change) -> Result<(), String> {
        let before = self.followed.slot.current();
        let monitor = !self.context.settings.rollout.monitor_time.is_zero();
        let answered = before.as_ref().map(|before| before.origin.clone());
        let monitored = match (&change, before.filter(|_| monitor)) {
            (Change::Promote { ordered, .. }, Some(before)) => {
                Some(Monitored::new(&before, *ordered, &self.boot))
            }
            _ => None,
        };
        let written = self.context.change_entry(self.name(), move |entry| match change {
            Change::Promote { placed, .. } => {
                entry.promote(placed, answered.as_ref().map(Option::as_ref), monitored);
            }
            Change::RollBack { undone, reason, to } => entry.roll_back(&undone, &reason, to),
            Change::ClearRejection { name, version } => entry.clear_rejection(&name, &version),
            Change::Pin { name, version } => {
                if let Some(version) = &version {
                    entry.clear_rejection(&name, version);
                }
                entry.pinned = version;
            }
        });
        written.await.map_err(|error| error.to_string())
    }

    /// Removes versions that are not needed from the disk.
    pub(super) async fn prune(&mut self) {
        let Some(current) = self.followed.slot.current() else { return };
        let (context, name) = (Arc::clone(&self.context), current.model.name.clone());
        // By the name in the registry, too: a model may change what its bundles call it.
        let registered = self.followed.follow.as_ref().map(|follow| follow.name.clone());
        let is_its = move |bundle: &StoredBundle| {
            bundle.model == name
                || bundle.origins.iter().any(|origin| Some(&origin.name) == registered.as_ref())
        };
        let pruned = tokio::task::spawn_blocking(move || {
            let needed = context.journal.needed();
            let needed: Vec<&str> = needed.iter().map(String::as_str).collect();
            context.store.prune(is_its, context.settings.retain_versions, &needed)
        });
        match pruned.await {
            Ok(Ok(removed)) if !removed.is_empty() => {
                tracing::info!(?removed, "old versions are removed from the disk");
            }
            Ok(Err(error)) => tracing::warn!(%error, "old versions cannot be removed from the disk"),
            _ => {}
        }
    }
}
