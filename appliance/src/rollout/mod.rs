//! From a registry to the lanes: follow an alias, fetch, verify, load beside, try, promote, or roll back.
//!
//! One task a model walks the steps; nothing here is on the path of a request. Invariants:
//! - A version answers only after its digests, its load, its golden cases and its trials are right.
//! - Until it does, the version before answers; on any failure it goes on answering, and the new one is rejected for
//!   good, with its reason, unless trying again can help.
//! - The journal is written before the routes change ([`journal`]), so a box that dies comes back with one verified version.

mod command;
mod commands;
mod crashes;
mod entry;
mod journal;
mod monitor;
mod notify;
mod promote;
mod promoted;
mod restore;
mod retire;
mod retries;
mod stages;
mod start;
mod status;
mod task;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::outbox::Outbox;
use cloud_sync::registry::{ModelReference, ModelRegistry};
use inference::lanes::LaneSettings;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::config::{MonitoringConfig, RolloutConfig};
use crate::models::{ModelStore, PullLimits};
use crate::serving::{Endpoint, ModelLoader};
use crate::telemetry::Metrics;

pub use command::{Command, Refusal};
pub use entry::{DeployedVersion, Entry};
pub use journal::{Journal, JournalError};
pub use start::{BootCandidate, begin};
pub use status::{StatusCell, Step};

/// How long an operator's command waits until the model's task takes it and has carried it out.
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
    /// Loads versions.
    pub loader: ModelLoader,
    /// The lanes that a version gets.
    pub lanes: LaneSettings,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Where a serving process makes events durable.
    pub outbox: Option<Arc<Outbox>>,
    /// How it is done.
    pub settings: Settings,
}

impl RolloutContext {
    /// Changes what is known of a model, on a thread that may wait for the disk: see [`Journal::change`].
    ///
    /// # Errors
    /// As [`Journal::change`].
    async fn note<T: Send + 'static>(
        self: &Arc<Self>,
        model: &str,
        change: impl FnOnce(&mut Entry) -> T + Send + 'static,
    ) -> Result<T, JournalError> {
        let (context, model) = (Arc::clone(self), model.to_owned());
        let written = tokio::task::spawn_blocking(move || context.journal.change(&model, change));
        written.await.unwrap_or_else(|_| Err(self.journal.not_begun()))
    }
}

/// How rollouts are done.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this box in tags and events.
    pub node: String,
    /// Steps and bounds.
    pub rollout: RolloutConfig,
    /// Summaries.
    pub monitoring: MonitoringConfig,
    /// How often the registry is asked.
    pub poll_interval: Duration,
    /// Versions of each model that stay on disk.
    pub retain_versions: usize,
    /// Whether versions are tagged.
    pub tag: bool,
    /// Bounds of a download.
    pub pull: PullLimits,
}

/// A model and how it comes by its versions.
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

/// What others see and do of one model's rollout.
#[derive(Debug)]
pub struct Handle {
    /// The model.
    pub followed: Followed,
    /// Where its rollout is.
    pub board: StatusCell,
    commands: mpsc::Sender<(Command, oneshot::Sender<Result<String, Refusal>>)>,
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
            let (commands, orders) = mpsc::channel(8);
            let board = StatusCell::default();
            let task = task::Task {
                context: Arc::clone(&context),
                followed: followed.clone(),
                board: board.clone(),
                orders,
                stop: stopped.clone(),
                standby_until: None,
                promoted: None,
                retries: retries::LoadRetries::default(),
            };
            tasks.push(tokio::spawn(task.run()));
            handles.insert(followed.slot.name().to_owned(), Handle { followed, board, commands });
        }
        if context.settings.monitoring.enabled {
            let slots = handles.values().map(|handle| Arc::clone(&handle.followed.slot)).collect();
            tasks.push(tokio::spawn(monitor::run(Arc::clone(&context), slots, stopped)));
        }
        Self { context, handles, stop, tasks: Mutex::new(tasks) }
    }

    /// The models, by name.
    pub fn handles(&self) -> &BTreeMap<String, Handle> {
        &self.handles
    }

    /// What is known of a model beyond this process's life.
    pub fn entry(&self, model: &str) -> Entry {
        self.context.journal.entry(model)
    }

    /// Tells all tasks to end, and waits for them; what is under way is taken up again by the next start.
    pub async fn end(&self, within: Duration) {
        let _ = self.stop.send(true);
        let tasks: Vec<_> = self.tasks.lock().drain(..).collect();
        let all = futures_util::future::join_all(tasks);
        if tokio::time::timeout(within, all).await.is_err() {
            tracing::warn!("a rollout did not end in time; the next start takes it up again");
        }
    }
}

impl Handle {
    /// Has the model's task carry out a command. The text says what it did. A command that is not begun in time, since a
    /// version is being loaded, is not carried out later either.
    ///
    /// # Errors
    /// [`Refusal`], when there is nothing that the command could do, or the task is busy for longer than [`COMMAND_TIMEOUT`].
    pub async fn order(&self, command: Command) -> Result<String, Refusal> {
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
                self.board.read().step
            ))),
        }
    }
}
