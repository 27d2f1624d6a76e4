//! Rollbacks: by an operator, by monitoring, and after crashes.

use super::state::{
    Cause, Change, Effect, Facts, Failure, Query, Rollback, Severity, Source, State, Swap, Waiting,
};
use super::{Next, abandon, after, command_done, resolve, show};
use crate::rollout::evaluate::{Evidence, evaluate_promoted};
use crate::rollout::{Refusal, Step};

/// Monitoring compares a promoted version with the limits, also while another one is downloaded or on trial.
pub(super) fn monitor(from: Waiting, evidence: &Evidence, save: bool, facts: &Facts<'_>) -> Next {
    let over = evidence.time >= facts.config.monitor_time;
    if let Some(reason) = evaluate_promoted(evidence, facts.config) {
        let reason = format!("after it was promoted, {reason}");
        let log = Effect::Log {
            severity: Severity::Error,
            message: "rolling back the version that serves",
            version: facts.current.as_ref().map_or_else(String::new, |current| current.description.clone()),
            reason: Some(reason.clone()),
        };
        return after(vec![log], roll_back(Cause::Monitoring { from, over }, reason, facts));
    }
    let effects = match (over, save) {
        (true, _) => vec![Effect::EndMonitoring],
        (false, true) => vec![Effect::SaveMonitoring { stopped: false }],
        (false, false) => Vec::new(),
    };
    (State::Waiting(from), effects)
}

/// Back to the version before: loaded still, from the store, or the configured bundle.
pub(super) fn roll_back(cause: Cause, reason: String, facts: &Facts<'_>) -> Next {
    let entry = facts.entry;
    let Some(serving) = &entry.serving else {
        let refusal = "the configured bundle serves; there is nothing to go back to";
        return rollback_failed(cause, reason, &Refusal(refusal.into()), facts);
    };
    let source = match &entry.previous {
        _ if facts.standby => Source::Standby,
        Some(previous) => Source::Stored(previous.clone()),
        None if facts.configured => Source::Configured,
        None => {
            let refusal = "there is no version before this one";
            return rollback_failed(cause, reason, &Refusal(refusal.into()), facts);
        }
    };
    let mut effects = Vec::new();
    if matches!(source, Source::Stored(_)) {
        let candidate = cause.interrupted().and_then(Waiting::candidate);
        effects.push(Effect::Show(Step::Loading, candidate));
    }
    effects.push(Effect::LoadReplacement(source));
    let (undone, to) = (serving.origin(), entry.previous.clone());
    (State::RollingBack(Rollback { undone, to, replacement: None, reason, cause }), effects)
}

pub(super) fn replacement_loaded(
    rollback: Rollback,
    outcome: Result<String, Failure>,
    facts: &Facts<'_>,
) -> Next {
    match outcome {
        Ok(description) => {
            let Rollback { undone, to, reason, .. } = rollback.clone();
            let write = Effect::Write(Change::RollBack { undone, reason, to });
            (State::RollingBack(Rollback { replacement: Some(description), ..rollback }), vec![write])
        }
        Err(failure) => rollback_failed(rollback.cause, rollback.reason, &failure.refusal(), facts),
    }
}

pub(super) fn rolled_back(rollback: Rollback, outcome: Result<(), String>, facts: &Facts<'_>) -> Next {
    let Rollback { undone, replacement, reason, cause, .. } = rollback;
    if let Err(error) = outcome {
        let failed = rollback_failed(cause, reason, &Refusal(error), facts);
        return after(vec![Effect::DropReplacement], failed);
    }
    let replacement = replacement.unwrap_or_default();
    let effects = vec![
        Effect::Swap(Swap::RolledBack),
        Effect::ShowError(None),
        Effect::Show(Step::Idle, None),
        Effect::Publish {
            state: "rolled_back",
            version: undone.to_string(),
            other: Some(replacement.clone()),
            reason: Some(reason),
        },
        Effect::Prune,
        Effect::SetTags,
    ];
    let next = match cause {
        Cause::Command(from) => {
            command_done(&from, Ok(format!("{replacement} serves again; {undone} is rejected")))
        }
        Cause::Crashes => resolve(Query::Poll, facts),
        // The evidence of a trial was collected beside a version that no longer serves.
        Cause::Monitoring { from: Waiting::OnTrial(..), .. } => abandon(),
        Cause::Monitoring { from, .. } => {
            let show = show(&from);
            (State::Waiting(from), vec![show])
        }
    };
    after(effects, next)
}

/// The version that serves keeps serving.
fn rollback_failed(cause: Cause, reason: String, refusal: &Refusal, facts: &Facts<'_>) -> Next {
    let version = facts.entry.serving.as_ref().map_or_else(String::new, ToString::to_string);
    let log = |message| Effect::Log {
        severity: Severity::Error,
        message,
        version: version.clone(),
        reason: Some(format!("{reason}; {refusal}")),
    };
    match cause {
        Cause::Command(from) => {
            let show = show(&from);
            after(vec![show], command_done(&from, Err(refusal.clone())))
        }
        Cause::Crashes => {
            let effects = vec![
                log("a version with which processes die cannot be rolled back; retrying at the next poll"),
                Effect::Show(Step::Idle, None),
            ];
            after(effects, resolve(Query::Poll, facts))
        }
        Cause::Monitoring { from, over } => {
            let effects = vec![
                log("the version that serves cannot be rolled back; it keeps serving"),
                Effect::ShowError(Some(format!("{reason}; it could not be rolled back: {refusal}"))),
                show(&from),
                // What prevented the rollback may pass.
                if over { Effect::EndMonitoring } else { Effect::PostponeMonitoring },
            ];
            (State::Waiting(from), effects)
        }
    }
}
