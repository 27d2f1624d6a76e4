//! States, inputs, effects and facts of the state machine.

use std::time::Instant;

use cloud_sync::registry::{ModelReference, ModelVersion};

use crate::config::RolloutConfig;
use crate::models::Origin;
use crate::rollout::entry::{DeployedVersion, Entry};
use crate::rollout::evaluate::{Evidence, Stage};
use crate::rollout::loading::LoadRetries;
use crate::rollout::{Command, Refusal, Step};

/// Where the rollout of a model is.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::rollout) enum State {
    /// Nothing but time, a command or a download changes it.
    Waiting(Waiting),
    /// The version of the journal is loaded in place of the one that serves.
    Restoring(DeployedVersion),
    /// The registry resolves the reference.
    Resolving(Query),
    /// The candidate is loaded beside the version that serves, and checked.
    Loading(DeployedVersion),
    /// The promotion of the candidate is written to the journal.
    Promoting(Promotion),
    /// The version before is loaded, then the rollback is written to the journal.
    RollingBack(Rollback),
    /// A command is written to the journal; `done` is its answer.
    Recording { done: String, from: Waiting },
    /// The process ends.
    Stopped,
}

/// States that take commands and evidence.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::rollout) enum Waiting {
    /// Until the next poll.
    Idle,
    /// For the files of a version.
    Downloading(ModelVersion),
    /// For the evidence of a trial.
    OnTrial(DeployedVersion, Stage),
}

impl Waiting {
    /// The version that is under way, as people read it.
    pub(super) fn candidate(&self) -> Option<String> {
        match self {
            Self::Idle => None,
            Self::Downloading(version) => Some(Origin::of(version).to_string()),
            Self::OnTrial(placed, _) => Some(placed.to_string()),
        }
    }
}

/// Why the registry is asked.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::rollout) enum Query {
    /// A poll is due.
    Poll,
    /// By an operator's command.
    Reload(ModelReference, Waiting),
    /// Whether a version that was downloaded is still wanted.
    Downloaded(DeployedVersion),
    /// Whether a version on trial is still wanted.
    OnTrial(DeployedVersion, Stage),
}

/// A promotion under way.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::rollout) struct Promotion {
    pub(in crate::rollout) placed: DeployedVersion,
    /// By an operator, whatever the trials have shown; the operator waits for the answer.
    pub(in crate::rollout) ordered: bool,
    /// The version that serves until then.
    pub(in crate::rollout) replaced: Option<String>,
}

/// A rollback under way.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::rollout) struct Rollback {
    pub(in crate::rollout) undone: Origin,
    /// The version before; none for the configured bundle.
    pub(in crate::rollout) to: Option<DeployedVersion>,
    /// What serves in its place, once that is loaded.
    pub(in crate::rollout) replacement: Option<String>,
    pub(in crate::rollout) reason: String,
    pub(in crate::rollout) cause: Cause,
}

/// Who rolls back.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::rollout) enum Cause {
    /// An operator, who waits for the answer.
    Command(Waiting),
    /// A limit was exceeded after the promotion. `over` says whether this was the end of monitoring.
    Monitoring { from: Waiting, over: bool },
    /// Processes died with the version.
    Crashes,
}

impl Cause {
    /// The state that the rollback interrupts.
    pub(super) fn interrupted(&self) -> Option<&Waiting> {
        match self {
            Self::Command(from) | Self::Monitoring { from, .. } => Some(from),
            Self::Crashes => None,
        }
    }
}

/// Why a version is not downloaded or loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::rollout) enum Failure {
    /// The version is at fault.
    Reject(String),
    /// Whether the version or this machine is at fault is unknown.
    Unclear(String),
    /// Another attempt can help.
    Later(String),
}

impl Failure {
    pub(super) fn refusal(self) -> Refusal {
        let (Self::Reject(reason) | Self::Unclear(reason) | Self::Later(reason)) = self;
        Refusal(reason)
    }
}

/// What has happened.
#[derive(Clone, Debug)]
pub(in crate::rollout) enum Input {
    /// It is time to ask the registry.
    PollDue,
    /// The version before has been kept loaded for long enough.
    StandbyExpired,
    /// The registry's answer; an error without a text where there is no registry.
    Resolved(Result<ModelVersion, Option<String>>),
    /// The digest of the bundle.
    Downloaded(Result<String, Failure>),
    /// The description of the version that was loaded.
    Loaded(Result<String, Failure>),
    /// Of the version on trial, since the trial began.
    TrialEvidence(Evidence),
    /// Of the version that serves, since its promotion; `save` where the journal is to get it.
    MonitorEvidence { evidence: Evidence, save: bool },
    /// From an operator.
    Command(Command),
    /// The journal is durable, or unchanged.
    Written(Result<(), String>),
    /// The process ends.
    Stop,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::rollout) enum Effect {
    /// Ask the registry. Answered by [`Input::Resolved`].
    Resolve(ModelReference),
    /// Begin a download. Answered by [`Input::Downloaded`], in [`Waiting::Downloading`].
    Download(ModelVersion),
    /// Load a version beside the one that serves. Answered by [`Input::Loaded`].
    LoadCandidate(DeployedVersion),
    /// Load what takes the place of the version that serves. Answered by [`Input::Loaded`].
    LoadReplacement(Source),
    /// Change the journal. Answered by [`Input::Written`].
    Write(Change),
    /// Route requests to the candidate, too.
    StartTrial(Stage),
    /// Change the version that serves; the journal says so already.
    Swap(Swap),
    /// Drop the download, the trial and the lanes of the candidate.
    Discard,
    /// Unload the replacement, which does not serve.
    DropReplacement,
    /// Unload the version before.
    UnloadStandby,
    /// Write to the journal that a version is rejected. Where that fails, it is tried again.
    Reject { origin: Origin, reason: String },
    /// Write to the journal that this version does not serve, but the one that does.
    DropServing(DeployedVersion),
    /// Write to the journal how far monitoring is; with `stopped`, also that this process did not die.
    SaveMonitoring { stopped: bool },
    /// Monitoring is over.
    EndMonitoring,
    /// Continue monitoring after a pause.
    PostponeMonitoring,
    /// Load versions without the wait after a failure.
    ForgetRetries,
    /// The step and the candidate in the status.
    Show(Step, Option<String>),
    /// The error in the status.
    ShowError(Option<String>),
    /// Answer the operator.
    Answer(Result<String, Refusal>),
    /// Publish an event.
    Publish { state: &'static str, version: String, other: Option<String>, reason: Option<String> },
    /// Write a log message.
    Log { severity: Severity, message: &'static str, version: String, reason: Option<String> },
    /// Remove old versions from the disk.
    Prune,
    /// Set the registry's tags that are queued in the journal.
    SetTags,
    /// Poll the registry at once.
    PollNow,
    /// Poll the registry after the interval.
    PollLater,
}

/// The version that serves after a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rollout) enum Swap {
    /// The candidate; the version before becomes the standby.
    Promoted,
    /// The replacement; the version before is unloaded, and the trial ends.
    RolledBack,
    /// The replacement, which the journal named all along.
    Restored,
}

/// Where a replacement comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::rollout) enum Source {
    Standby,
    Stored(DeployedVersion),
    Configured,
}

/// A change of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::rollout) enum Change {
    Promote { placed: DeployedVersion, ordered: bool },
    RollBack { undone: Origin, reason: String, to: Option<DeployedVersion> },
    ClearRejection { name: String, version: String },
    Pin { name: String, version: Option<String> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rollout) enum Severity {
    Warn,
    Error,
}

/// The version that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::rollout) struct Current {
    /// None for the configured bundle.
    pub(in crate::rollout) origin: Option<Origin>,
    pub(in crate::rollout) description: String,
}

/// What decides besides state and input.
#[derive(Clone, Debug)]
pub(in crate::rollout) struct Facts<'a> {
    /// The name of the model.
    pub(in crate::rollout) model: &'a str,
    pub(in crate::rollout) config: &'a RolloutConfig,
    /// What the configuration follows.
    pub(in crate::rollout) follow: Option<&'a ModelReference>,
    /// The journal's.
    pub(in crate::rollout) entry: &'a Entry,
    pub(in crate::rollout) current: Option<Current>,
    /// Whether the version before is still loaded.
    pub(in crate::rollout) standby: bool,
    /// Whether there is a configured bundle.
    pub(in crate::rollout) configured: bool,
    /// Versions that could not be loaded.
    pub(in crate::rollout) retries: &'a LoadRetries,
    /// Identifies this boot of the machine.
    pub(in crate::rollout) boot: &'a str,
    pub(in crate::rollout) now: Instant,
}

impl Facts<'_> {
    pub(super) fn followed_entry(&self) -> Entry {
        self.entry.clone().still_followed(self.follow)
    }

    pub(super) fn serves(&self, origin: &Origin) -> bool {
        self.current.as_ref().is_some_and(|current| current.origin.as_ref() == Some(origin))
    }

    /// Why a version is not loaded now, if it has to wait after a failure.
    pub(super) fn waits(&self, origin: &Origin) -> Option<&str> {
        self.retries.waits(origin, self.now)
    }
}
