//! The steps of one version: fetch, load beside, try in the shadow, try on some cameras, promote or reject.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::event::ModelChange;
use cloud_sync::registry::ModelVersion;
use inference::bundle::Bundle;

use super::entry::DeployedVersion;
use super::promote::Why;
use super::retire::retire;
use super::status::Step;
use super::task::{Interrupt, Order, Polled, Task};
use super::verdict::{Evidence, Stage, TrialDecision, judge};
use super::{Command, Refusal, notify};
use crate::low_priority;
use crate::models::{Origin, pull};
use crate::serving::{Comparison, LoadError, LoadedModel, Trial, TrialKind};

/// How often a trial is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often the version that serves is looked at while another is downloaded.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Why a version does not come to serve.
pub(super) enum RolloutError {
    /// Never: it is rejected.
    Reject(String),
    /// It failed, and whether it or this machine is at fault can't be told.
    Unclear(String),
    /// Not now.
    Later(String),
    /// Something else is to be followed meanwhile.
    Superseded,
    /// The process ends.
    Stop,
}

impl RolloutError {
    fn of(error: &LoadError) -> Self {
        let reason = error.to_string();
        if error.is_transient() {
            Self::Later(reason)
        } else if error.is_certain() {
            Self::Reject(reason)
        } else {
            Self::Unclear(reason)
        }
    }

    /// The same for an operator.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::Reject(reason) | Self::Unclear(reason) | Self::Later(reason) => Refusal(reason.clone()),
            Self::Superseded => Refusal("something else is followed by now".into()),
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
                    RolloutError::Reject(reason) | RolloutError::Unclear(reason) => {
                        self.reject(&origin, &reason, "rejected").await;
                    }
                    RolloutError::Later(reason) => {
                        tracing::warn!(
                            model = self.name(),
                            version = candidate,
                            reason,
                            "it is tried again later"
                        );
                        self.board.note(|status| status.error = Some(format!("{candidate}: {reason}")));
                    }
                    RolloutError::Superseded => return Polled::Again,
                    RolloutError::Stop => return Polled::Stop,
                }
                Polled::Later
            }
        }
    }

    async fn walk(&mut self, version: &ModelVersion, origin: &Origin) -> Result<(), RolloutError> {
        let digest = self.fetch(version).await?;
        // The alias may have moved while the download went on.
        match self.resolve().await {
            Some(now) if Origin::of(&now) != *origin => return Err(RolloutError::Superseded),
            // The registry has gone meanwhile; what was fetched is what it wanted last.
            _ => {}
        }
        let model = Arc::new(self.load(&digest, Some(origin.clone())).await?);
        let config = self.context.settings.rollout.clone();
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
        let why = if ordered.is_some() { Why::Ordered } else { Why::Passed };
        let promoted = self.promote(model, Some(DeployedVersion::new(&digest, origin)), why).await;
        if let Some(order) = ordered {
            order.answer(match &promoted {
                Ok(()) => Ok(format!("{described} serves from now on")),
                Err(setback) => Err(setback.refusal()),
            });
        }
        promoted
    }

    /// Fetches and verifies a version. Returns the digest of its bundle.
    async fn fetch(&mut self, version: &ModelVersion) -> Result<String, RolloutError> {
        self.board.note(|status| status.step = Step::Downloading);
        let context = Arc::clone(&self.context);
        let Some(registry) = context.registry.clone() else { return Err(RolloutError::Superseded) };
        let ignore = |_| {};
        let pulling = pull(registry.as_ref(), version, &context.store, &context.settings.pull, &ignore);
        tokio::pin!(pulling);
        let outcome = loop {
            tokio::select! {
                outcome = &mut pulling => break outcome,
                // What is downloaded is as good beside the version before.
                () = tokio::time::sleep(WATCH_INTERVAL) => {
                    self.check_promoted().await;
                }
                interrupt = self.interrupt() => match interrupt {
                    Interrupt::Stop => return Err(RolloutError::Stop),
                    Interrupt::Order(order) if order.command == Command::Promote => {
                        order.answer(Err(Refusal("the version is being downloaded; it is on no trial yet".into())));
                    }
                    Interrupt::Order(order) => {
                        self.handle_command(order).await;
                        return Err(RolloutError::Superseded);
                    }
                },
            }
        };
        outcome.map(|pulled| pulled.digest).map_err(|error| match error.is_transient() {
            true => RolloutError::Later(error.to_string()),
            false => RolloutError::Reject(error.to_string()),
        })
    }

    /// Loads a bundle of the store beside what serves, warms it and runs its golden cases.
    pub(super) async fn load(
        &mut self,
        digest: &str,
        origin: Option<Origin>,
    ) -> Result<LoadedModel, RolloutError> {
        self.board.note(|status| status.step = Step::Loading);
        let (context, digest) = (Arc::clone(&self.context), digest.to_owned());
        let of = origin.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            let verified = low_priority::run(|| context.store.bundle(&digest));
            let bundle = verified.map_err(|error| RolloutError::Later(error.to_string()))?;
            let bundle = bundle.map_err(|error| match error.is_transient() {
                true => RolloutError::Later(error.to_string()),
                false => RolloutError::Reject(error.to_string()),
            })?;
            beside(&context, bundle, origin).map_err(|error| RolloutError::of(&error))
        });
        let loaded =
            loaded.await.unwrap_or_else(|_| Err(RolloutError::Unclear("loading it panicked".into())));
        match (&loaded, of) {
            (Ok(_), Some(origin)) => self.retries.worked(&origin),
            (Err(RolloutError::Later(reason) | RolloutError::Unclear(reason)), Some(origin)) => {
                self.retries.failed(&origin, reason, self.context.settings.poll_interval, Instant::now());
            }
            _ => {}
        }
        loaded
    }

    /// Has a version on trial until the trial's end: of itself, or by an operator's order that it is to serve.
    async fn attempt(
        &mut self,
        stage: Stage,
        kind: TrialKind,
        model: &Arc<LoadedModel>,
        origin: &Origin,
    ) -> Result<Option<Order>, RolloutError> {
        let Some(serving) = self.followed.slot.current() else { return Ok(None) };
        self.context.metrics.on_trial(self.name(), &model.model.version);
        let comparison = Arc::<Comparison>::default();
        let (began, trial, before) = (Instant::now(), model.stats.read(), serving.stats.read());
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
            if self.check_promoted().await {
                // What was seen was held against a version that serves no more.
                return Err(RolloutError::Superseded);
            }
            let (compared, disagreed) = comparison.read();
            let evidence = Evidence {
                time: began.elapsed(),
                trial: model.stats.read().since(&trial),
                serving: serving.stats.read().since(&before),
                compared,
                disagreed,
            };
            match judge(stage, &evidence, &self.context.settings.rollout) {
                TrialDecision::Pass => return Ok(None),
                TrialDecision::Fail(reason) => return Err(RolloutError::Reject(reason)),
                TrialDecision::Wait => {}
            }
            if asked.elapsed() >= self.context.settings.poll_interval {
                asked = Instant::now();
                if self.resolve().await.is_some_and(|now| Origin::of(&now) != *origin) {
                    return Err(RolloutError::Superseded);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                interrupt = self.interrupt() => match interrupt {
                    Interrupt::Stop => return Err(RolloutError::Stop),
                    Interrupt::Order(order) => match order.command {
                        Command::Promote => return Ok(Some(order)),
                        Command::Rollback => {
                            order.answer(Ok(format!("{} is rejected", model.describe())));
                            return Err(RolloutError::Reject("rolled back by an operator".into()));
                        }
                        Command::Reload => order.answer(Ok("the trial goes on".into())),
                        Command::Pin(_) => {
                            self.handle_command(order).await;
                            return Err(RolloutError::Superseded);
                        }
                    },
                },
            }
        }
    }

    /// A version is not tried again; what serves goes on.
    async fn reject(&mut self, origin: &Origin, reason: &str, state: &str) {
        let (rejected, why) = (origin.clone(), reason.to_owned());
        let noted = self.context.note(self.name(), move |entry| {
            entry.reject(&rejected, &why);
            entry.tell(&rejected, notify::tag_value(&format!("rejected: {why}")));
        });
        if let Err(error) = noted.await {
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
        notify::event(&self.context, change).await;
        self.prune().await;
    }

    fn end_trial(&self) {
        let mut trial = None;
        self.followed.slot.change(|routes| trial = routes.trial.take());
        if let Some(Trial { model, .. }) = trial {
            retire(model);
        }
    }
}

/// Loads a bundle beside what serves; blocking.
pub(super) fn beside(
    context: &super::RolloutContext,
    bundle: Bundle,
    origin: Option<Origin>,
) -> Result<LoadedModel, LoadError> {
    let observer = Arc::clone(&context.metrics);
    context.loader.load_candidate(bundle, origin, &context.lanes, observer)
}
