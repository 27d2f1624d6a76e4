//! The task of one model: waits for inputs of the state machine and carries out its effects.
//!
//! It holds what the state machine does not: timers, the download, loaded versions, and who waits for an answer. While an
//! effect is carried out nothing else happens; commands wait in their channel.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cloud_sync::event::ModelChange;
use cloud_sync::registry::{ModelReference, ModelVersion};
use tokio::sync::{mpsc, oneshot, watch};

use super::evidence::{Observed, Promoted};
use super::loading::{LoadRetries, load_replacement, load_stored, retire};
use super::state_machine::{Current, Effect, Facts, Failure, Input, Severity, State, Waiting, transition};
use super::{Command, Followed, Refusal, RolloutContext, StatusCell, Step, reporting};
use crate::models::{Origin, PullError, Pulled, pull};
use crate::serving::LoadedModel;

/// Time until the first poll, at most.
const FIRST_POLL: Duration = Duration::from_millis(50);

/// Who waits for the outcome of a command.
pub(super) type Caller = oneshot::Sender<Result<String, Refusal>>;

/// Not `Sync`, which is why the asynchronous methods of the driver take `&mut self`.
type Download = Pin<Box<dyn Future<Output = Result<Pulled, PullError>> + Send>>;

pub(super) struct Driver {
    pub(super) context: Arc<RolloutContext>,
    pub(super) followed: Followed,
    pub(super) status: StatusCell,
    commands: mpsc::Receiver<(Command, Caller)>,
    stop: watch::Receiver<bool>,
    /// Identifies this boot of the machine.
    pub(super) boot: String,
    poll_at: Instant,
    /// When the version before is unloaded.
    pub(super) standby_until: Option<Instant>,
    /// Of the command that is carried out.
    caller: Option<Caller>,
    download: Option<Download>,
    /// The version that is on its way, once it is loaded.
    pub(super) candidate: Option<Arc<LoadedModel>>,
    pub(super) trial: Option<Observed>,
    /// What is to serve in place of the current version after a rollback or a restart.
    pub(super) replacement: Option<Arc<LoadedModel>>,
    /// The version that was promoted last, while it is monitored.
    pub(super) promoted: Option<Promoted>,
    /// Versions that could not be loaded.
    retries: LoadRetries,
}

impl Driver {
    pub(super) fn new(
        context: Arc<RolloutContext>,
        followed: Followed,
        status: StatusCell,
        commands: mpsc::Receiver<(Command, Caller)>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let first_poll = context.settings.poll_interval.min(FIRST_POLL);
        Self {
            context,
            followed,
            status,
            commands,
            stop,
            boot: cloud_sync::durable::boot_id(),
            poll_at: Instant::now() + first_poll,
            standby_until: None,
            caller: None,
            download: None,
            candidate: None,
            trial: None,
            replacement: None,
            promoted: None,
            retries: LoadRetries::default(),
        }
    }

    pub(super) async fn run(mut self) {
        self.resume_monitoring();
        let mut state = State::Waiting(Waiting::Idle);
        let mut result = None;
        loop {
            let input = match (result.take(), &state) {
                (Some(input), _) => input,
                (None, State::Waiting(waiting)) => self.wait(waiting).await,
                // Only a state that waits, and the last one, have no effect with a result.
                (None, _) => return,
            };
            let (next, effects) = self.transition(state, input);
            state = next;
            for effect in effects {
                if let Some(input) = self.carry_out(effect).await {
                    result = Some(input);
                }
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        self.followed.slot.name()
    }

    fn transition(&self, state: State, input: Input) -> (State, Vec<Effect>) {
        let routes = self.followed.slot.routes();
        let current = routes
            .current
            .as_ref()
            .map(|current| Current { origin: current.origin.clone(), description: current.describe() });
        let facts = Facts {
            model: self.name(),
            config: &self.context.settings.rollout,
            follow: self.followed.follow.as_ref(),
            entry: &self.context.journal.entry(self.name()),
            current,
            standby: routes.standby.is_some(),
            configured: self.followed.bundle.is_some(),
            retries: &self.retries,
            boot: &self.boot,
            now: Instant::now(),
        };
        transition(state, input, &facts)
    }

    /// The next input of a state that waits.
    async fn wait(&mut self, waiting: &Waiting) -> Input {
        let (idle, downloading) = (*waiting == Waiting::Idle, matches!(waiting, Waiting::Downloading(_)));
        loop {
            // Before what is due: a registry that answers more slowly than it is polled must not delay the end.
            if *self.stop.borrow() {
                return Input::Stop;
            }
            let now = Instant::now();
            // The standby is kept while a version is on its way: it is the way back from the one that serves.
            if idle && self.standby_until.is_some_and(|until| until <= now) {
                return Input::StandbyExpired;
            }
            if let Some(input) = self.monitor_evidence(now) {
                return input;
            }
            if let Some(evidence) = self.trial.as_mut().and_then(|trial| trial.check(now)) {
                return Input::TrialEvidence(evidence);
            }
            if !downloading && self.poll_at <= now {
                self.poll_at = now + self.context.settings.poll_interval;
                return Input::PollDue;
            }
            let wake = [
                self.standby_until.filter(|_| idle),
                self.promoted.as_ref().map(|promoted| promoted.next_check),
                self.trial.as_ref().map(|trial| trial.next_check),
                (!downloading).then_some(self.poll_at),
            ];
            let wake = wake.into_iter().flatten().min();
            let wake = wake.unwrap_or_else(|| now + self.context.settings.poll_interval);
            tokio::select! {
                _ = self.stop.wait_for(|stop| *stop) => return Input::Stop,
                command = next_command(&mut self.commands) => match command {
                    Some((command, caller)) => {
                        self.caller = Some(caller);
                        return Input::Command(command);
                    }
                    None => return Input::Stop,
                },
                outcome = downloaded(&mut self.download), if downloading => {
                    self.download = None;
                    return Input::Downloaded(match outcome {
                        Ok(pulled) => Ok(pulled.digest),
                        Err(error) => Err(Failure::of(error.to_string(), error.is_transient())),
                    });
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    /// Evidence of the version that was promoted last, if it still serves and it is time to evaluate it.
    fn monitor_evidence(&mut self, now: Instant) -> Option<Input> {
        let promoted = self.promoted.as_mut().filter(|promoted| promoted.next_check <= now)?;
        let current = self.followed.slot.current();
        if !current.is_some_and(|current| Arc::ptr_eq(&current, &promoted.model)) {
            self.forget_promoted();
            return None;
        }
        let (evidence, save) = promoted.check(now);
        Some(Input::MonitorEvidence { evidence, save })
    }

    /// The result of an effect, if it has one.
    async fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Resolve(reference) => {
                let resolved = self.resolve(&reference).await;
                // Counted from the answer: commands are received between two polls, however long one takes.
                self.poll_at = Instant::now() + self.context.settings.poll_interval;
                return Some(Input::Resolved(resolved));
            }
            Effect::Download(version) => self.begin_download(version),
            Effect::LoadCandidate(placed) => {
                let loaded = load_stored(&self.context, &mut self.retries, &placed).await.map(Arc::new);
                return Some(Input::Loaded(hold(&mut self.candidate, loaded)));
            }
            Effect::LoadReplacement(source) => {
                let (slot, configured) = (&self.followed.slot, self.followed.bundle.clone());
                let loaded =
                    load_replacement(&self.context, &mut self.retries, slot, configured, source).await;
                return Some(Input::Loaded(hold(&mut self.replacement, loaded)));
            }
            Effect::Write(change) => return Some(Input::Written(self.write(change).await)),
            Effect::StartTrial(stage) => {
                self.start_trial(stage);
                self.poll_at = Instant::now() + self.context.settings.poll_interval;
            }
            Effect::Swap(swap) => self.swap(swap),
            Effect::Discard => {
                self.download = None;
                self.discard();
            }
            Effect::DropReplacement => self.replacement.take().into_iter().for_each(retire),
            Effect::UnloadStandby => self.unload_standby(),
            Effect::Reject { origin, reason } => self.reject(origin, reason).await,
            Effect::DropServing(placed) => self.drop_serving(placed).await,
            Effect::SaveMonitoring { stopped } => self.save_monitoring(stopped).await,
            Effect::EndMonitoring => self.end_monitoring().await,
            Effect::PostponeMonitoring => self.promoted.iter_mut().for_each(Promoted::postpone),
            Effect::ForgetRetries => self.retries.forget(),
            Effect::Show(step, candidate) => {
                self.status.update(|status| (status.step, status.candidate) = (step, candidate));
            }
            Effect::ShowError(error) => self.status.update(|status| status.error = error),
            // The caller may have gone.
            Effect::Answer(outcome) => {
                let _ = self.caller.take().map(|caller| caller.send(outcome));
            }
            Effect::Publish { state, version, other, reason } => {
                let (model, state) = (self.name().to_owned(), state.to_owned());
                let change = ModelChange { model, state, version, other, reason };
                reporting::publish(&self.context, change).await;
            }
            Effect::Log { severity, message, version, reason } => {
                let model = self.name();
                match severity {
                    Severity::Warn => tracing::warn!(model, version, reason, "{message}"),
                    Severity::Error => tracing::error!(model, version, reason, "{message}"),
                }
            }
            Effect::Prune => self.prune().await,
            Effect::SetTags => reporting::set_tags(&self.context, self.name()).await,
            Effect::PollNow => self.poll_at = Instant::now(),
            Effect::PollLater => {
                self.poll_at = Instant::now() + jittered(self.context.settings.poll_interval);
            }
        }
        None
    }

    fn begin_download(&mut self, version: ModelVersion) {
        let Some(registry) = self.context.registry.clone() else { return };
        tracing::info!(model = self.name(), version = %Origin::of(&version), "rolling out a new version");
        let context = Arc::clone(&self.context);
        self.download = Some(Box::pin(async move {
            let ignore = |_| {};
            let limits = &context.settings.pull;
            pull(registry.as_ref(), &version, &context.store, limits, &ignore).await
        }));
    }

    /// Asks the registry.
    async fn resolve(&mut self, reference: &ModelReference) -> Result<ModelVersion, Option<String>> {
        let registry = self.context.registry.clone().ok_or(None)?;
        let resolved = registry.resolve(reference).await;
        let answered = resolved.is_ok();
        let version = match resolved {
            Ok(Some(version)) => Ok(version),
            Ok(None) => Err(format!("{reference}: the registry has no such model, alias or version")),
            Err(error) => Err(error.in_full()),
        };
        let error = version.as_ref().err().cloned();
        let mut changed = false;
        self.status.update(|status| {
            if answered {
                status.last_polled_at = Some(SystemTime::now());
            }
            changed = error.is_some() && status.error != error;
            if error.is_some() || status.step == Step::Idle {
                status.error.clone_from(&error);
            }
        });
        if let (true, Some(error)) = (changed, error) {
            let model = self.name();
            tracing::warn!(model, error, "the registry names no version; the current one keeps serving");
        }
        version.map_err(Some)
    }
}

/// Keeps a version that was loaded, and describes it.
fn hold(
    place: &mut Option<Arc<LoadedModel>>,
    loaded: Result<Arc<LoadedModel>, Failure>,
) -> Result<String, Failure> {
    loaded.map(|model| {
        let description = model.describe();
        *place = Some(model);
        description
    })
}

/// The next command whose sender still waits.
async fn next_command(commands: &mut mpsc::Receiver<(Command, Caller)>) -> Option<(Command, Caller)> {
    loop {
        let (command, caller) = commands.recv().await?;
        if !caller.is_closed() {
            return Some((command, caller));
        }
    }
}

async fn downloaded(download: &mut Option<Download>) -> Result<Pulled, PullError> {
    match download {
        Some(download) => download.await,
        None => std::future::pending().await,
    }
}

/// Up to a fifth more or less, so that a fleet that was started at once does not poll at once.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.8 + 0.4 * fastrand::f64())
}
