//! From a registry to the lanes: follow an alias, download, verify, load, try, promote, or roll back.
//!
//! One task per model. [`state_machine`] decides what follows, without I/O; [`driver`] waits for inputs and carries out the
//! effects ([`effects`]). Nothing here is on the path of a request. Invariants:
//! - A version answers only after its digests, its load, its golden cases and its trials have succeeded.
//! - Until then the version before answers. On any failure it keeps serving, and the new one is rejected for good, with its
//!   reason, unless another attempt can help.
//! - The journal is written before the routes change ([`journal`]), so that a process that dies restarts with a verified
//!   version.

mod boot;
mod driver;
mod effects;
mod entry;
mod evaluate;
mod evidence;
mod journal;
mod loading;
mod reporting;
mod state_machine;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cloud_sync::outbox::Outbox;
use cloud_sync::registry::{ModelReference, ModelRegistry};
use inference::lanes::LaneSettings;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use utoipa::ToSchema;

use crate::config::{MonitoringConfig, RolloutConfig};
use crate::models::{ModelStore, PullLimits};
use crate::serving::{Endpoint, ModelLoader};
use crate::telemetry::Metrics;

pub use boot::{BootCandidate, load_at_boot};
pub use entry::{DeployedVersion, Entry};
pub use journal::{Journal, JournalError};

/// Longest time in which an operator's command is accepted by the model's task and carried out.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// What all rollouts of a process share.
#[derive(Debug)]
pub struct RolloutContext {
    /// Where versions come from; none where no model follows anything.
    pub registry: Option<Arc<dyn ModelRegistry>>,
    /// Versions on disk.
    pub store: ModelStore,
    /// What outlives the process.
    pub journal: Journal,
    /// Builds the lanes of a version on this machine's device.
    pub loader: ModelLoader,
    /// The lanes of each version.
    pub lanes: LaneSettings,
    /// The metrics of the process.
    pub metrics: Arc<Metrics>,
    /// For events; none in a process that does not serve.
    pub outbox: Option<Arc<Outbox>>,
    /// Settings of all rollouts.
    pub settings: Settings,
}

impl RolloutContext {
    /// Changes the journal's entry of a model, on a thread that may wait for the disk: see [`Journal::change`].
    ///
    /// # Errors
    /// As [`Journal::change`].
    async fn change_entry<T: Send + 'static>(
        self: &Arc<Self>,
        model: &str,
        change: impl FnOnce(&mut Entry) -> T + Send + 'static,
    ) -> Result<T, JournalError> {
        let (context, model) = (Arc::clone(self), model.to_owned());
        let written = tokio::task::spawn_blocking(move || context.journal.change(&model, change));
        written.await.unwrap_or_else(|_| Err(self.journal.not_begun()))
    }
}

/// Settings of all rollouts of a process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this box in tags and events.
    pub node: String,
    /// Stages and limits of trials.
    pub rollout: RolloutConfig,
    /// Reports to the registry.
    pub monitoring: MonitoringConfig,
    /// How often the registry is polled.
    pub poll_interval: Duration,
    /// Versions per model that stay on disk.
    pub retain_versions: usize,
    /// Whether versions are tagged in the registry.
    pub tag: bool,
    /// Limits of a download.
    pub pull: PullLimits,
}

/// A model and where its versions come from.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Where its versions are loaded.
    pub slot: Arc<Endpoint>,
    /// What it follows.
    pub follow: Option<ModelReference>,
    /// The folder that the configuration names, or where the default bundle is.
    pub bundle: Option<PathBuf>,
    /// Whether it is meant when a request names no model.
    pub is_default: bool,
}

/// An operator's command to the rollout of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ends the trial of the version that is on trial: it serves.
    Promote,
    /// Back to the version before. The one that serves, or is on trial, is rejected.
    Rollback,
    /// Polls the registry now; a version that was rejected is tried again.
    Reload,
    /// Serves this version of the registered model, whatever the alias says; `None` ends that.
    Pin(Option<String>),
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// The step of a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Nothing new is there.
    #[default]
    Idle,
    /// A version is being fetched and verified.
    Downloading,
    /// It is being loaded beside the one that serves, warmed, and run on its golden cases.
    Loading,
    /// It computes what the one that serves is asked, and answers nobody.
    Shadow,
    /// It answers some cameras.
    Canary,
}

/// What `/models`, `/health` and operators see of a rollout.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The current step.
    pub step: Step,
    /// The version that is on its way: `fish-classifier/4`.
    pub candidate: Option<String>,
    /// When the registry answered last.
    pub last_polled_at: Option<SystemTime>,
    /// What went wrong last, if nothing went right since.
    pub error: Option<String>,
    /// Versions that came to serve since the start of the process.
    pub promoted: u64,
    /// Versions that were rejected since the start of the process.
    pub rejected: u64,
}

/// A shared [`Status`].
#[derive(Clone, Debug, Default)]
pub struct StatusCell(Arc<Mutex<Status>>);

impl StatusCell {
    /// A copy of the current status.
    pub fn read(&self) -> Status {
        self.0.lock().clone()
    }

    fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock());
    }
}

/// The rollout of one model, for everyone but its task.
#[derive(Debug)]
pub struct Handle {
    /// The model.
    pub followed: Followed,
    /// The status of its rollout.
    pub status: StatusCell,
    commands: mpsc::Sender<(Command, driver::Caller)>,
}

/// The rollouts of a process.
#[derive(Debug)]
pub struct Rollouts {
    context: Arc<RolloutContext>,
    handles: BTreeMap<String, Handle>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Rollouts {
    /// Starts a task for each model; on a thread of the runtime.
    pub fn start(context: RolloutContext, models: Vec<Followed>) -> Self {
        let context = Arc::new(context);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        let mut handles = BTreeMap::new();
        for followed in models {
            let (commands, received) = mpsc::channel(8);
            let status = StatusCell::default();
            let name = followed.slot.name().to_owned();
            let (shared, seen) = (Arc::clone(&context), status.clone());
            let driver = driver::Driver::new(shared, followed.clone(), seen, received, stopped.clone());
            tasks.push(tokio::spawn(driver.run()));
            handles.insert(name, Handle { followed, status, commands });
        }
        if context.settings.monitoring.enabled {
            let slots = handles.values().map(|handle| Arc::clone(&handle.followed.slot)).collect();
            tasks.push(tokio::spawn(reporting::run_reports(Arc::clone(&context), slots, stopped)));
        }
        Self { context, handles, stop, tasks: Mutex::new(tasks) }
    }

    /// The models, by name.
    pub fn handles(&self) -> &BTreeMap<String, Handle> {
        &self.handles
    }

    /// The journal's entry of a model.
    pub fn entry(&self, model: &str) -> Entry {
        self.context.journal.entry(model)
    }

    /// Stops all tasks and waits for them; the next process resumes what was under way.
    pub async fn end(&self, within: Duration) {
        let _ = self.stop.send(true);
        let tasks: Vec<_> = self.tasks.lock().drain(..).collect();
        let all = futures_util::future::join_all(tasks);
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!("a rollout did not stop in time; the next process resumes it");
        }
    }
}

impl Handle {
    /// Has the model's task carry out a command, and returns what it did. A command that is not started in time, since a
    /// version is being loaded, is not carried out later either.
    ///
    /// # Errors
    /// [`Refusal`], when there is nothing that the command could do, or the task is busy for longer than [`COMMAND_TIMEOUT`].
    pub async fn submit(&self, command: Command) -> Result<String, Refusal> {
        let (answer, answered) = oneshot::channel();
        let outcome = tokio::time::timeout(COMMAND_TIMEOUT, async {
            self.commands.send((command, answer)).await.ok()?;
            answered.await.ok()
        });
        match outcome.await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(Refusal("the appliance is stopping".to_owned())),
            Err(_) => Err(Refusal(format!(
                "the rollout of this model has been busy for {} s ({:?}): a command that had not begun by now is dropped; GET /models says what serves",
                COMMAND_TIMEOUT.as_secs(),
                self.status.read().step
            ))),
        }
    }
}
