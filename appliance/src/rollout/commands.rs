//! What an operator has a rollout do while no version is on trial.

use std::sync::Arc;

use inference::bundle::{Bundle, find_bundle};

use super::entry::{DeployedVersion, Entry};
use super::promote::Why;
use super::stages::beside;
use super::status::Step;
use super::task::{Order, Task};
use super::{Command, Refusal, notify};
use crate::serving::LoadedModel;

impl Task {
    /// Carries out a command while no version is on trial.
    pub(super) async fn handle_command(&mut self, order: Order) {
        let outcome = match &order.command {
            Command::Promote => Err(Refusal("no version is on trial".into())),
            Command::Reload => self.clear_rejection().await,
            Command::Rollback => self.back("rolled back by an operator").await,
            Command::Pin(version) => self.pin(version.clone()).await,
        };
        order.answer(outcome);
    }

    async fn clear_rejection(&mut self) -> Result<String, Refusal> {
        let Some(reference) = self.reference() else {
            return Err(Refusal(format!("model {} follows nothing: it has no `follow`", self.name())));
        };
        let version = self.resolve().await.ok_or_else(|| {
            Refusal(self.board.read().error.unwrap_or_else(|| "the registry does not answer".into()))
        })?;
        self.retries.forget();
        let described = format!("{reference} is {}/{} now", version.name, version.version);
        let forgiven = self
            .context
            .note(self.name(), move |entry| entry.clear_rejection(&version.name, &version.version));
        forgiven.await.map_err(|error| Refusal(error.to_string()))?;
        Ok(described)
    }

    async fn pin(&mut self, version: Option<String>) -> Result<String, Refusal> {
        let Some(follow) = self.followed.follow.clone() else {
            return Err(Refusal(format!("model {} follows nothing: it has no `follow`", self.name())));
        };
        self.retries.forget();
        let (wanted, name) = (version.clone(), follow.name.clone());
        let pinned = self.context.note(self.name(), move |entry| {
            if let Some(version) = &wanted {
                entry.clear_rejection(&name, version);
            }
            entry.pinned = wanted;
        });
        pinned.await.map_err(|error| Refusal(error.to_string()))?;
        Ok(match version {
            Some(version) => format!("pinned to {}/{version}", follow.name),
            None => format!("{follow} is followed again"),
        })
    }

    /// Back to the version before: loaded still, from the store, or the configured bundle.
    pub(super) async fn back(&mut self, reason: &str) -> Result<String, Refusal> {
        let entry = self.context.journal.entry(self.name());
        let Some(serving) = entry.serving.clone() else {
            return Err(Refusal("the configured bundle serves; there is nothing to go back to".into()));
        };
        let (model, placed) = self.before(&entry).await?;
        let described = model.describe();
        let origin = serving.origin();
        match self.promote(model, placed, Why::Undone(&origin, reason)).await {
            Ok(()) => {
                notify::tags(&self.context, self.name()).await;
                Ok(format!("{described} serves again; {}/{} is rejected", origin.name, origin.version))
            }
            Err(setback) => Err(setback.refusal()),
        }
    }

    async fn before(
        &mut self,
        entry: &Entry,
    ) -> Result<(Arc<LoadedModel>, Option<DeployedVersion>), Refusal> {
        if let Some(standby) = self.followed.slot.routes().standby.clone() {
            return Ok((standby, entry.previous.clone()));
        }
        if let Some(previous) = entry.previous.clone() {
            let loaded = self.load(&previous.digest, Some(previous.origin())).await;
            self.board.note(|status| status.step = Step::Idle);
            return Ok((Arc::new(loaded.map_err(|setback| setback.refusal())?), Some(previous)));
        }
        let (context, dir) = (Arc::clone(&self.context), self.followed.bundle.clone());
        let Some(dir) = dir else {
            return Err(Refusal("there is no version before this one".into()));
        };
        let loaded = tokio::task::spawn_blocking(move || {
            let bundle = Bundle::open(&find_bundle(Some(&dir))?)?;
            beside(&context, bundle, None)
        });
        match loaded.await {
            Ok(Ok(model)) => Ok((Arc::new(model), None)),
            Ok(Err(error)) => Err(Refusal(error.to_string())),
            Err(_) => Err(Refusal("loading the configured bundle panicked".into())),
        }
    }
}
