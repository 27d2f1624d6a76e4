//! The version that served when the last process ended, where the start could not load it: it serves as soon as that works.

use std::sync::Arc;
use std::time::Instant;

use super::crashes;
use super::entry::DeployedVersion;
use super::retire::retire;
use super::stages::RolloutError;
use super::start::still_followed;
use super::status::Step;
use super::task::Task;
use crate::models::Origin;
use crate::serving::LoadedModel;

impl Task {
    /// Loads the version that the journal says serves, where another does, unless processes have died with it: then it is rolled back. Only where it is certain that the version itself is
    /// at fault does the journal forget it: it has served here before, so that this machine is the likelier reason.
    pub(super) async fn restore(&mut self) {
        let name = self.name().to_owned();
        let entry = still_followed(&self.followed, &self.context.journal);
        let crashed = crashes::verdict(&entry, self.context.settings.rollout.monitor_time);
        let Some(placed) = entry.serving else { return };
        let origin = placed.origin();
        let current = self.followed.slot.current();
        if current.as_ref().is_some_and(|current| current.origin.as_ref() == Some(&origin)) {
            return;
        }
        if self.retries.waits(&origin, Instant::now()).is_some() {
            return;
        }
        if let Some(reason) = crashed {
            if let Err(refusal) = self.back(&reason).await {
                tracing::error!(model = name, reason, %refusal, "a version could not be rolled back; it is tried again");
            }
            return;
        }
        let outcome = self.load(&placed.digest, Some(origin.clone())).await;
        self.board.note(|status| status.step = Step::Idle);
        match outcome {
            Ok(model) => {
                tracing::info!(
                    model = name,
                    version = model.describe(),
                    "the version that served before serves again"
                );
                let mut gone = None;
                self.followed.slot.change(|routes| gone = routes.current.replace(Arc::new(model)));
                gone.into_iter().for_each(retire);
                self.board.note(|status| status.error = None);
                self.announce();
                self.go_on_monitoring();
            }
            Err(RolloutError::Reject(reason)) => {
                tracing::error!(
                    model = name,
                    reason,
                    "the version that served before can't be loaded; the one that was loaded serves"
                );
                self.forget(placed, current.as_deref()).await;
            }
            Err(setback) => {
                let reason = setback.refusal();
                tracing::warn!(model = name, %reason, "the version that served before can't be loaded now; it is tried again");
                self.note_unloadable(&origin, &reason.0);
            }
        }
    }

    /// Keeps saying why the version that served before does not: other errors of a poll take the place of that.
    pub(super) fn note_unrestored(&self) {
        let Some(placed) = still_followed(&self.followed, &self.context.journal).serving else { return };
        let origin = placed.origin();
        let serves =
            self.followed.slot.current().is_some_and(|current| current.origin.as_ref() == Some(&origin));
        if let (false, Some(reason)) = (serves, self.retries.waits(&origin, Instant::now())) {
            self.note_unloadable(&origin, reason);
        }
    }

    /// Says why a version can't be loaded now.
    pub(super) fn note_unloadable(&self, origin: &Origin, reason: &str) {
        let error = format!("{}/{} can't be loaded now: {reason}", origin.name, origin.version);
        self.board.note(|status| status.error = Some(error));
    }

    /// What the journal says serves can't; what does serve takes its place there.
    async fn forget(&self, placed: DeployedVersion, current: Option<&LoadedModel>) {
        let origin = current.and_then(|current| current.origin.clone());
        let noted = self.context.note(self.name(), move |entry| {
            if entry.serving.as_ref() != Some(&placed) {
                return;
            }
            entry.serving = entry.previous.take().filter(|previous| Some(previous.origin()) == origin);
            entry.monitored = None;
        });
        if let Err(error) = noted.await {
            tracing::warn!(%error, "what serves could not be written down");
        }
    }
}
