//! A version comes to serve: the journal first, then the routes, then all who are told.

use std::sync::Arc;
use std::time::Instant;

use cloud_sync::event::ModelChange;

use super::entry::{DeployedVersion, Entry, Monitored};
use super::notify;
use super::promoted::Promoted;
use super::retire::retire;
use super::stages::RolloutError;
use super::status::Step;
use super::task::Task;
use crate::models::{Origin, StoredBundle};
use crate::serving::LoadedModel;

/// Why a version comes to serve.
#[derive(Clone, Copy)]
pub(super) enum Why<'a> {
    /// It has passed its trials.
    Passed,
    /// An operator wants it, whatever its trials have shown.
    Ordered,
    /// The one that served is undone, for this reason.
    Undone(&'a Origin, &'a str),
}

impl Task {
    /// Has a version serve: journal first, then the routes. The one before stays loaded for a while.
    pub(super) async fn promote(
        &mut self,
        model: Arc<LoadedModel>,
        placed: Option<DeployedVersion>,
        why: Why<'_>,
    ) -> Result<(), RolloutError> {
        let before = self.followed.slot.current();
        let (version, other) = (model.describe(), before.as_ref().map(|before| before.describe()));
        let undone = match why {
            Why::Undone(origin, reason) => Some((origin.clone(), reason.to_owned())),
            Why::Passed | Why::Ordered => None,
        };
        let monitored = before
            .as_ref()
            .filter(|_| undone.is_none() && !self.context.settings.rollout.monitor_time.is_zero())
            .map(|before| Monitored::new(before, matches!(why, Why::Ordered)));
        let (noted, named, monitoring) = (undone.clone(), version.clone(), monitored.clone());
        let answered = before.as_ref().map(|before| before.origin.clone());
        let written = self.context.note(self.name(), move |entry: &mut Entry| {
            if let Some((origin, reason)) = &noted {
                entry.reject(origin, reason);
                entry.tell(origin, notify::tag_value(&format!("rejected: {reason}")));
                entry.previous = None;
            } else {
                if let Some(replaced) = entry.make_way(answered.as_ref().map(Option::as_ref)) {
                    entry.tell(&replaced.origin(), format!("replaced by {named}"));
                }
            }
            if let Some(placed) = &placed {
                entry.tell(&placed.origin(), "serving".to_owned());
            }
            entry.serving = placed;
            entry.monitored = monitoring;
        });
        if let Err(error) = written.await {
            // Its lanes are not ended here, where that would block.
            retire(model);
            return Err(RolloutError::Later(error.to_string()));
        }
        let promoted = monitored.map(|monitored| Promoted::go_on(&model, monitored));
        let mut gone = Vec::new();
        self.followed.slot.change(|routes| {
            // One that failed is of no use for a way back.
            let standby = before.filter(|_| undone.is_none());
            let old = std::mem::replace(&mut routes.standby, standby);
            gone.extend(old.filter(|old| !Arc::ptr_eq(old, &model)));
            gone.extend(routes.current.replace(model).filter(|_| undone.is_some()));
            routes.trial = None;
            routes.monitored = promoted.as_ref().and_then(Promoted::comparison);
        });
        self.promoted = promoted;
        gone.into_iter().for_each(retire);
        self.standby_until = Some(Instant::now() + self.context.settings.rollout.keep_previous_loaded);
        self.board.note(|status| {
            (status.step, status.candidate, status.error) = (Step::Idle, None, None);
            status.promoted += 1;
        });
        self.announce();
        let state = if undone.is_some() { "rolled_back" } else { "serving" };
        let (version, other) = match &undone {
            Some((origin, _)) => (format!("{}/{}", origin.name, origin.version), Some(version)),
            None => (version, other),
        };
        let reason = undone.map(|(_, reason)| reason);
        let change =
            ModelChange { model: self.name().to_owned(), state: state.to_owned(), version, other, reason };
        notify::event(&self.context, change).await;
        self.prune().await;
        Ok(())
    }

    /// Metrics say which version serves.
    pub(super) fn announce(&self) {
        if let Some(current) = self.followed.slot.current() {
            self.context.metrics.serving(&current.labels(self.name(), self.context.loader.device.kind));
        }
    }

    /// Removes versions that nobody needs from the disk.
    pub(super) async fn prune(&self) {
        let Some(current) = self.followed.slot.current() else { return };
        let context = Arc::clone(&self.context);
        // By the name in the registry too: a model may change what its bundles call it.
        let registered = self.followed.follow.as_ref().map(|follow| follow.name.clone());
        let is_its = move |bundle: &StoredBundle| {
            bundle.model == current.model.name
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
            Ok(Err(error)) => tracing::warn!(%error, "old versions stay on the disk"),
            _ => {}
        }
    }
}
