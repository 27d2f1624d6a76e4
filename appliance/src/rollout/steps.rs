//! The steps of one version: fetch, load beside, try in the shadow, try on some cameras, promote or reject.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::event::ModelChange;
use cloud_sync::registry::ModelVersion;

use super::journal::{Entry, Placed};
use super::promoted::Promoted;
use super::retire::retire;
use super::status::Step;
use super::task::{Interrupt, Order, Polled, Task};
use super::verdict::{Evidence, Stage, Verdict, judge};
use super::{Command, Refusal, tell};
use crate::gentle;
use crate::models::{Bundle, Origin, StoredBundle, pull};
use crate::serving::{Comparison, LoadError, LoadedModel, Trial, TrialKind};

/// How often a trial is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Why a version does not come to serve.
pub(super) enum Setback {
    /// Never: it is rejected.
    Reject(String),
    /// Not now.
    Later(String),
    /// Something else is to be followed meanwhile.
    Overtaken,
    /// The process ends.
    Stop,
}

impl Setback {
    /// The same for an operator.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::Reject(reason) | Self::Later(reason) => Refusal(reason.clone()),
            Self::Overtaken => Refusal("something else is followed by now".into()),
            Self::Stop => Refusal("the appliance is stopping".into()),
        }
    }
}

impl Task {
    /// Walks a version through all steps.
    pub(super) async fn roll(&mut self, version: ModelVersion) -> Polled {
        let origin = Origin::of(&version);
        let candidate = format!("{}/{}", origin.name, origin.version);
        tracing::info!(model = self.name(), version = candidate, "a new version is rolled out");
        self.board.note(|status| status.candidate = Some(candidate.clone()));
        match self.walk(&version, &origin).await {
            Ok(()) => Polled::Again,
            Err(setback) => {
                self.end_trial();
                match setback {
                    Setback::Reject(reason) => self.reject(&origin, &reason, "rejected").await,
                    Setback::Later(reason) => {
                        tracing::warn!(
                            model = self.name(),
                            version = candidate,
                            reason,
                            "it is tried again later"
                        );
                        self.board.note(|status| status.error = Some(format!("{candidate}: {reason}")));
                    }
                    Setback::Overtaken => return Polled::Again,
                    Setback::Stop => return Polled::Stop,
                }
                Polled::Later
            }
        }
    }

    async fn walk(&mut self, version: &ModelVersion, origin: &Origin) -> Result<(), Setback> {
        let digest = self.fetch(version).await?;
        // The alias may have moved while the download went on.
        match self.resolve().await {
            Some(now) if Origin::of(&now) != *origin => return Err(Setback::Overtaken),
            // The registry has gone meanwhile; what was fetched is what it wanted last.
            _ => {}
        }
        let model = Arc::new(self.load(&digest, Some(origin.clone())).await?);
        let config = self.around.settings.rollout.clone();
        let mut trials = Vec::new();
        if config.shadow_images > 0 || !config.shadow_time.is_zero() {
            trials.push((Stage::Shadow, TrialKind::Shadow));
        }
        if config.canary > 0.0 {
            trials.push((Stage::Canary, TrialKind::Canary { part: config.canary / 100.0 }));
        }
        let mut ordered = None;
        for (stage, kind) in trials {
            ordered = self.attempt(stage, kind, &model, origin).await?;
            if ordered.is_some() {
                break;
            }
        }
        let described = model.describe();
        let promoted = self.promote(model, Some(Placed::new(&digest, origin)), None).await;
        if let Some(order) = ordered {
            order.answer(match &promoted {
                Ok(()) => Ok(format!("{described} serves from now on")),
                Err(setback) => Err(setback.refusal()),
            });
        }
        promoted
    }

    /// Fetches and verifies a version. Returns the digest of its bundle.
    async fn fetch(&mut self, version: &ModelVersion) -> Result<String, Setback> {
        self.board.note(|status| status.step = Step::Downloading);
        let around = Arc::clone(&self.around);
        let Some(registry) = around.registry.clone() else { return Err(Setback::Overtaken) };
        let ignore = |_| {};
        let pulling = pull(registry.as_ref(), version, &around.store, &around.settings.pull, &ignore);
        tokio::pin!(pulling);
        let outcome = loop {
            tokio::select! {
                outcome = &mut pulling => break outcome,
                interrupt = self.interrupt() => match interrupt {
                    Interrupt::Stop => return Err(Setback::Stop),
                    Interrupt::Order(order) if order.command == Command::Promote => {
                        order.answer(Err(Refusal("the version is being downloaded; it is on no trial yet".into())));
                    }
                    Interrupt::Order(order) => {
                        self.carry_out(order).await;
                        return Err(Setback::Overtaken);
                    }
                },
            }
        };
        outcome.map(|pulled| pulled.digest).map_err(|error| match error.is_transient() {
            true => Setback::Later(error.to_string()),
            false => Setback::Reject(error.to_string()),
        })
    }

    /// Loads a bundle of the store beside what serves, warms it and runs its golden cases.
    pub(super) async fn load(
        &mut self,
        digest: &str,
        origin: Option<Origin>,
    ) -> Result<LoadedModel, Setback> {
        self.board.note(|status| status.step = Step::Loading);
        let (around, digest) = (Arc::clone(&self.around), digest.to_owned());
        let loaded = tokio::task::spawn_blocking(move || {
            let verified = gentle::run(|| around.store.bundle(&digest));
            let bundle = verified.map_err(|error| Setback::Later(error.to_string()))?;
            let bundle = bundle.map_err(|error| match error.is_transient() {
                true => Setback::Later(error.to_string()),
                false => Setback::Reject(error.to_string()),
            })?;
            beside(&around, bundle, origin).map_err(|error| match error.is_transient() {
                true => Setback::Later(error.to_string()),
                false => Setback::Reject(error.to_string()),
            })
        });
        loaded.await.unwrap_or_else(|_| Err(Setback::Reject("loading it panicked".into())))
    }

    /// Has a version on trial until the trial's end: of itself, or by an operator's order that it is to serve.
    async fn attempt(
        &mut self,
        stage: Stage,
        kind: TrialKind,
        model: &Arc<LoadedModel>,
        origin: &Origin,
    ) -> Result<Option<Order>, Setback> {
        let Some(serving) = self.followed.slot.current() else { return Ok(None) };
        self.around.metrics.on_trial(self.name(), model);
        let comparison = Arc::<Comparison>::default();
        let (began, trial, before) = (Instant::now(), model.tally.read(), serving.tally.read());
        self.board.note(|status| {
            status.step = match stage {
                Stage::Shadow => Step::Shadow,
                Stage::Canary => Step::Canary,
            };
        });
        let on_trial = Trial { model: Arc::clone(model), kind, comparison: Arc::clone(&comparison) };
        self.followed.slot.change(|routes| routes.trial = Some(on_trial));
        let mut asked = Instant::now();
        loop {
            let (compared, disagreed) = comparison.read();
            let evidence = Evidence {
                time: began.elapsed(),
                trial: model.tally.read().since(&trial),
                serving: serving.tally.read().since(&before),
                compared,
                disagreed,
            };
            match judge(stage, &evidence, &self.around.settings.rollout) {
                Verdict::Pass => return Ok(None),
                Verdict::Fail(reason) => return Err(Setback::Reject(reason)),
                Verdict::Wait => {}
            }
            if asked.elapsed() >= self.around.settings.poll {
                asked = Instant::now();
                if self.resolve().await.is_some_and(|now| Origin::of(&now) != *origin) {
                    return Err(Setback::Overtaken);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                interrupt = self.interrupt() => match interrupt {
                    Interrupt::Stop => return Err(Setback::Stop),
                    Interrupt::Order(order) => match order.command {
                        Command::Promote => return Ok(Some(order)),
                        Command::Rollback => {
                            order.answer(Ok(format!("{} is rejected", model.describe())));
                            return Err(Setback::Reject("rolled back by an operator".into()));
                        }
                        Command::Reload => order.answer(Ok("the trial goes on".into())),
                        Command::Pin(_) => {
                            self.carry_out(order).await;
                            return Err(Setback::Overtaken);
                        }
                    },
                },
            }
        }
    }

    /// Has a version serve: journal first, then the routes. The one before stays loaded for a while.
    pub(super) async fn promote(
        &mut self,
        model: Arc<LoadedModel>,
        placed: Option<Placed>,
        undone: Option<(&Origin, &str)>,
    ) -> Result<(), Setback> {
        let before = self.followed.slot.current();
        let (version, other) = (model.describe(), before.as_ref().map(|before| before.describe()));
        let written = self.around.journal.change(self.name(), |entry: &mut Entry| {
            if let Some((origin, reason)) = undone {
                entry.reject(origin, reason);
                entry.tell(origin, tell::tag_value(&format!("rejected: {reason}")));
                entry.previous = None;
            } else {
                entry.previous = entry.serving.take();
                if let Some(previous) = entry.previous.clone() {
                    entry.tell(&previous.origin(), format!("replaced by {version}"));
                }
            }
            entry.serving.clone_from(&placed);
            if let Some(placed) = &placed {
                entry.tell(&placed.origin(), "serving".to_owned());
            }
        });
        if let Err(error) = written {
            // Its lanes are not ended here, where that would block.
            retire(model);
            return Err(Setback::Later(error.to_string()));
        }
        let monitored = undone.is_none() && !self.around.settings.rollout.monitor_time.is_zero();
        self.promoted = match &before {
            Some(before) if monitored => Some(Promoted::new(&model, before)),
            _ => None,
        };
        let mut gone = Vec::new();
        self.followed.slot.change(|routes| {
            // One that failed is of no use for a way back.
            let standby = before.filter(|_| undone.is_none());
            let old = std::mem::replace(&mut routes.standby, standby);
            gone.extend(old.filter(|old| !Arc::ptr_eq(old, &model)));
            gone.extend(routes.current.replace(model).filter(|_| undone.is_some()));
            routes.trial = None;
        });
        gone.into_iter().for_each(retire);
        self.standby_until = Some(Instant::now() + self.around.settings.rollout.standby);
        self.board.note(|status| {
            (status.step, status.candidate, status.error) = (Step::Idle, None, None);
            status.promoted += 1;
        });
        self.announce();
        let state = if undone.is_some() { "rolled_back" } else { "serving" };
        let (version, other) = match undone {
            Some((origin, _)) => (format!("{}/{}", origin.name, origin.version), Some(version)),
            None => (version, other),
        };
        let reason = undone.map(|(_, reason)| reason.to_owned());
        let change =
            ModelChange { model: self.name().to_owned(), state: state.to_owned(), version, other, reason };
        tell::event(&self.around, change).await;
        self.prune().await;
        Ok(())
    }

    /// Metrics say which version serves.
    pub(super) fn announce(&self) {
        if let Some(current) = self.followed.slot.current() {
            self.around.metrics.serving(self.name(), &current, &self.around.loader.device.kind.to_string());
        }
    }

    /// A version is not tried again; what serves goes on.
    async fn reject(&mut self, origin: &Origin, reason: &str, state: &str) {
        let noted = self.around.journal.change(self.name(), |entry| {
            entry.reject(origin, reason);
            entry.tell(origin, tell::tag_value(&format!("rejected: {reason}")));
        });
        if let Err(error) = noted {
            tracing::error!(%error, "that a version was rejected could not be written down; it will be tried again");
        }
        let version = format!("{}/{}", origin.name, origin.version);
        self.board.note(|status| {
            status.error = Some(format!("{version} was rejected: {reason}"));
            status.rejected += 1;
        });
        let change = ModelChange {
            model: self.name().to_owned(),
            state: state.to_owned(),
            version,
            other: self.followed.slot.current().map(|current| current.describe()),
            reason: Some(reason.to_owned()),
        };
        tell::event(&self.around, change).await;
        self.prune().await;
    }

    fn end_trial(&self) {
        let mut trial = None;
        self.followed.slot.change(|routes| trial = routes.trial.take());
        if let Some(Trial { model, .. }) = trial {
            retire(model);
        }
    }

    /// Removes versions that nobody needs from the disk.
    async fn prune(&self) {
        let Some(current) = self.followed.slot.current() else { return };
        let around = Arc::clone(&self.around);
        // By the name in the registry too: a model may change what its bundles call it.
        let registered = self.followed.follow.as_ref().map(|follow| follow.name.clone());
        let is_its = move |bundle: &StoredBundle| {
            bundle.model == current.model.name
                || bundle.origins.iter().any(|origin| Some(&origin.name) == registered.as_ref())
        };
        let pruned = tokio::task::spawn_blocking(move || {
            let needed = around.journal.needed();
            let needed: Vec<&str> = needed.iter().map(String::as_str).collect();
            around.store.prune(is_its, around.settings.keep, &needed)
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

/// Loads a bundle beside what serves; blocking.
pub(super) fn beside(
    around: &super::Surroundings,
    bundle: Bundle,
    origin: Option<Origin>,
) -> Result<LoadedModel, LoadError> {
    let observer = Arc::clone(&around.metrics);
    around.loader.load_beside(bundle, origin, &around.lanes, observer)
}
