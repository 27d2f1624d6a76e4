//! The rollout of one model as a state machine. Pure: no I/O, and no clock but the time in [`Facts`].
//!
//! [`transition`] takes a state, an input and the facts that decide, and returns the next state and the effects to carry
//! out, in this order. The driver carries them out and feeds back their results as inputs.
//!
//! ```text
//! Idle -> (Restoring) -> Resolving -> Downloading -> Resolving -> Loading -> OnTrial(shadow) -> OnTrial(canary) -> Promoting -> Idle
//! ```
//!
//! The three [`Waiting`] states also take commands and the evidence of monitoring, which may lead to `RollingBack` and back.
//! In the other states the driver carries out one effect, whose result is the next input.

mod rollback;
mod state;
#[cfg(test)]
mod tests;

use cloud_sync::registry::{ModelReference, ModelVersion, Which};

pub(super) use state::{
    Cause, Change, Current, Effect, Facts, Failure, Input, Promotion, Query, Severity, Source, State, Swap,
    Waiting,
};

use super::entry::DeployedVersion;
use super::evaluate::{Stage, TrialDecision, evaluate_trial};
use super::{Command, Refusal, Step};
use crate::models::Origin;
use rollback::{monitor, replacement_loaded, roll_back, rolled_back};

type Next = (State, Vec<Effect>);

/// The next state and what is to be done.
pub(super) fn transition(state: State, input: Input, facts: &Facts<'_>) -> Next {
    match (state, input) {
        (State::Stopped, _) => (State::Stopped, Vec::new()),
        (state, Input::Stop) => stop(&state),
        (State::Waiting(from), Input::Command(command)) => handle_command(from, command, facts),
        (State::Waiting(from), Input::MonitorEvidence { evidence, save }) => {
            monitor(from, &evidence, save, facts)
        }
        (State::Waiting(Waiting::Idle), Input::PollDue) => poll(facts),
        (State::Waiting(Waiting::Idle), Input::StandbyExpired) => {
            (State::Waiting(Waiting::Idle), vec![Effect::UnloadStandby])
        }
        (State::Waiting(Waiting::Downloading(version)), Input::Downloaded(outcome)) => match outcome {
            // The alias may have moved during the download.
            Ok(digest) => {
                let placed = DeployedVersion::new(&digest, &Origin::of(&version));
                resolve(Query::Downloaded(placed), facts)
            }
            Err(failure) => give_up(&Origin::of(&version), failure, facts),
        },
        (State::Waiting(Waiting::OnTrial(placed, stage)), Input::PollDue) => {
            resolve(Query::OnTrial(placed, stage), facts)
        }
        (State::Waiting(Waiting::OnTrial(placed, stage)), Input::TrialEvidence(evidence)) => {
            match evaluate_trial(stage, &evidence, facts.config) {
                TrialDecision::Wait => (State::Waiting(Waiting::OnTrial(placed, stage)), Vec::new()),
                TrialDecision::Pass => next_stage(placed, Some(stage), facts),
                TrialDecision::Fail(reason) => give_up(&placed.origin(), Failure::Reject(reason), facts),
            }
        }
        (State::Restoring(placed), Input::Loaded(outcome)) => restored(placed, outcome, facts),
        (State::Resolving(query), Input::Resolved(answer)) => resolved(query, answer, facts),
        (State::Loading(placed), Input::Loaded(outcome)) => match outcome {
            Ok(_) => next_stage(placed, None, facts),
            Err(failure) => give_up(&placed.origin(), failure, facts),
        },
        (State::Promoting(promotion), Input::Written(outcome)) => promoted(promotion, outcome, facts),
        (State::RollingBack(rollback), Input::Loaded(outcome)) if rollback.replacement.is_none() => {
            replacement_loaded(rollback, outcome, facts)
        }
        (State::RollingBack(rollback), Input::Written(outcome)) if rollback.replacement.is_some() => {
            rolled_back(rollback, outcome, facts)
        }
        (State::Recording { done, from }, Input::Written(outcome)) => {
            command_done(&from, outcome.map(|()| done).map_err(Refusal))
        }
        // The result of an effect of a state that has ended.
        (state, _) => (state, Vec::new()),
    }
}

/// The process ends. What was downloaded stays for the next one.
fn stop(state: &State) -> Next {
    let mut effects = match state {
        State::Waiting(Waiting::Idle) => Vec::new(),
        _ => vec![Effect::Discard, Effect::Show(Step::Idle, None), Effect::SetTags],
    };
    effects.push(Effect::SaveMonitoring { stopped: true });
    (State::Stopped, effects)
}

/// First the version that the journal says serves, if another one does; then the registry.
fn poll(facts: &Facts<'_>) -> Next {
    let entry = facts.followed_entry();
    if let Some(placed) = entry.serving.clone()
        && !facts.serves(&placed.origin())
        && facts.waits(&placed.origin()).is_none()
    {
        return match entry.crash_reason(facts.config.monitor_time, facts.boot) {
            Some(reason) => roll_back(Cause::Crashes, reason, facts),
            None => (
                State::Restoring(placed.clone()),
                vec![Effect::Show(Step::Loading, None), Effect::LoadReplacement(Source::Stored(placed))],
            ),
        };
    }
    resolve(Query::Poll, facts)
}

/// Only where it is certain that the version itself is at fault does the journal drop it: it has served here before, so
/// that this machine is the likelier reason.
fn restored(placed: DeployedVersion, outcome: Result<String, Failure>, facts: &Facts<'_>) -> Next {
    let mut effects = vec![Effect::Show(Step::Idle, None)];
    let log = |severity, message, reason| Effect::Log {
        severity,
        message,
        version: placed.to_string(),
        reason: Some(reason),
    };
    match outcome {
        Ok(_) => effects.extend([Effect::Swap(Swap::Restored), Effect::ShowError(None)]),
        Err(Failure::Reject(reason)) => effects.extend([
            log(
                Severity::Error,
                "the version of the journal cannot be loaded; another one keeps serving",
                reason,
            ),
            Effect::DropServing(placed),
        ]),
        Err(Failure::Unclear(reason) | Failure::Later(reason)) => effects.extend([
            log(
                Severity::Warn,
                "the version of the journal cannot be loaded now; retrying later",
                reason.clone(),
            ),
            Effect::ShowError(Some(unloadable(&placed.origin(), &reason))),
        ]),
    }
    after(effects, resolve(Query::Poll, facts))
}

/// What the model follows now: the pinned version, else the configured alias or version.
fn reference(facts: &Facts<'_>) -> Option<ModelReference> {
    let follow = facts.follow.cloned()?;
    Some(match &facts.entry.pinned {
        Some(version) => ModelReference { which: Which::Version(version.clone()), ..follow },
        None => follow,
    })
}

fn resolve(query: Query, facts: &Facts<'_>) -> Next {
    match reference(facts) {
        Some(reference) => (State::Resolving(query), vec![Effect::Resolve(reference)]),
        None => resolved(query, Err(None), facts),
    }
}

fn resolved(query: Query, answer: Result<ModelVersion, Option<String>>, facts: &Facts<'_>) -> Next {
    let other_than = |placed: &DeployedVersion| {
        answer.as_ref().is_ok_and(|version| Origin::of(version) != placed.origin())
    };
    match query {
        Query::Poll => polled(answer.ok(), facts),
        Query::Reload(reference, from) => match answer {
            Ok(version) => {
                let ModelVersion { name, version, .. } = version;
                let done = format!("{reference} is {name}/{version} now");
                let write = Effect::Write(Change::ClearRejection { name, version });
                (State::Recording { done, from }, vec![Effect::ForgetRetries, write])
            }
            Err(error) => {
                let refusal = error.unwrap_or_else(|| "the registry does not answer".into());
                command_done(&from, Err(Refusal(refusal)))
            }
        },
        // Where the registry does not answer, what was downloaded is what it wanted last.
        Query::Downloaded(placed) | Query::OnTrial(placed, _) if other_than(&placed) => abandon(),
        Query::Downloaded(placed) => {
            let show = Effect::Show(Step::Loading, Some(placed.to_string()));
            (State::Loading(placed.clone()), vec![show, Effect::LoadCandidate(placed)])
        }
        Query::OnTrial(placed, stage) => (State::Waiting(Waiting::OnTrial(placed, stage)), Vec::new()),
    }
}

/// Rolls out what is new; the version that serves, and one that was rejected, are not.
fn polled(version: Option<ModelVersion>, facts: &Facts<'_>) -> Next {
    let idle = State::Waiting(Waiting::Idle);
    let mut effects = Vec::new();
    // Other errors of a poll must not hide why the version of the journal does not serve.
    if let Some(origin) = facts.followed_entry().serving.map(|placed| placed.origin())
        && !facts.serves(&origin)
        && let Some(reason) = facts.waits(&origin)
    {
        effects.push(Effect::ShowError(Some(unloadable(&origin, reason))));
    }
    let Some(version) = version else {
        effects.push(Effect::PollLater);
        return (idle, effects);
    };
    let origin = Origin::of(&version);
    let placed = facts.entry.serving.as_ref().is_some_and(|serving| serving.origin() == origin);
    if placed && facts.current.is_some() || facts.entry.rejection(&origin).is_some() {
        effects.extend([Effect::SetTags, Effect::PollLater]);
        return (idle, effects);
    }
    if let Some(reason) = facts.waits(&origin) {
        let show = Effect::ShowError(Some(unloadable(&origin, reason)));
        effects.extend([show, Effect::SetTags, Effect::PollLater]);
        return (idle, effects);
    }
    let show = Effect::Show(Step::Downloading, Some(origin.to_string()));
    effects.extend([show, Effect::Download(version.clone())]);
    (State::Waiting(Waiting::Downloading(version)), effects)
}

/// The next trial of a version that is loaded, or its promotion. Without a version that serves there is nothing to
/// compare with, hence no trial.
fn next_stage(placed: DeployedVersion, last: Option<Stage>, facts: &Facts<'_>) -> Next {
    let config = facts.config;
    let shadow = config.shadow_images > 0 || !config.shadow_time.is_zero();
    let next = match last {
        _ if facts.current.is_none() => None,
        None if shadow => Some(Stage::Shadow),
        None | Some(Stage::Shadow) if config.canary > 0.0 => Some(Stage::Canary),
        _ => None,
    };
    let Some(stage) = next else { return promote(placed, false, facts) };
    let waiting = Waiting::OnTrial(placed, stage);
    // The route before the step: whoever sees the step can rely on the route.
    let effects = vec![Effect::StartTrial(stage), show(&waiting)];
    (State::Waiting(waiting), effects)
}

fn promote(placed: DeployedVersion, ordered: bool, facts: &Facts<'_>) -> Next {
    let replaced = facts.current.as_ref().map(|current| current.description.clone());
    let write = Effect::Write(Change::Promote { placed: placed.clone(), ordered });
    (State::Promoting(Promotion { placed, ordered, replaced }), vec![write])
}

fn promoted(promotion: Promotion, outcome: Result<(), String>, facts: &Facts<'_>) -> Next {
    let Promotion { placed, ordered, replaced } = promotion;
    let answer = |outcome| ordered.then_some(Effect::Answer(outcome));
    if let Err(reason) = outcome {
        let answer = answer(Err(Refusal(reason.clone())));
        let given_up = give_up(&placed.origin(), Failure::Later(reason), facts);
        return after(answer.into_iter().collect(), given_up);
    }
    let version = placed.to_string();
    let mut effects = vec![
        Effect::Swap(Swap::Promoted),
        Effect::ShowError(None),
        Effect::Show(Step::Idle, None),
        Effect::Publish { state: "serving", version: version.clone(), other: replaced, reason: None },
        Effect::Prune,
    ];
    effects.extend(answer(Ok(format!("{version} serves from now on"))));
    // Another version may have been registered meanwhile.
    effects.extend([Effect::SetTags, Effect::PollNow]);
    (State::Waiting(Waiting::Idle), effects)
}

/// A version does not come to serve. It is rejected, unless another attempt can help.
fn give_up(origin: &Origin, failure: Failure, facts: &Facts<'_>) -> Next {
    let version = origin.to_string();
    let mut effects = vec![Effect::Discard];
    match failure {
        Failure::Reject(reason) | Failure::Unclear(reason) => {
            let other = facts.current.as_ref().map(|current| current.description.clone());
            effects.extend([
                Effect::Reject { origin: origin.clone(), reason: reason.clone() },
                Effect::ShowError(Some(format!("{version} was rejected: {reason}"))),
                Effect::Publish { state: "rejected", version, other, reason: Some(reason) },
                Effect::Prune,
            ]);
        }
        Failure::Later(reason) => {
            let error = format!("{version}: {reason}");
            let message = "a version is tried again later";
            effects.extend([
                Effect::Log { severity: Severity::Warn, message, version, reason: Some(reason) },
                Effect::ShowError(Some(error)),
            ]);
        }
    }
    effects.extend([Effect::Show(Step::Idle, None), Effect::SetTags, Effect::PollLater]);
    (State::Waiting(Waiting::Idle), effects)
}

/// Something else is to be followed.
fn abandon() -> Next {
    let effects = vec![Effect::Discard, Effect::Show(Step::Idle, None), Effect::SetTags, Effect::PollNow];
    (State::Waiting(Waiting::Idle), effects)
}

fn handle_command(from: Waiting, command: Command, facts: &Facts<'_>) -> Next {
    let refuse = |reason: &str| Effect::Answer(Err(Refusal(reason.into())));
    match (command, from) {
        (Command::Promote, Waiting::OnTrial(placed, _)) => promote(placed, true, facts),
        (Command::Promote, from @ Waiting::Downloading(_)) => {
            let refusal = refuse("the version is being downloaded; it is on no trial yet");
            (State::Waiting(from), vec![refusal])
        }
        (Command::Promote, Waiting::Idle) => {
            command_done(&Waiting::Idle, Err(Refusal("no version is on trial".into())))
        }
        (Command::Rollback, Waiting::OnTrial(placed, _)) => {
            let answer = Effect::Answer(Ok(format!("{placed} is rejected")));
            let failure = Failure::Reject("rolled back by an operator".into());
            after(vec![answer], give_up(&placed.origin(), failure, facts))
        }
        (Command::Rollback, from) => {
            roll_back(Cause::Command(from), "rolled back by an operator".into(), facts)
        }
        (Command::Reload, from @ Waiting::OnTrial(..)) => {
            (State::Waiting(from), vec![Effect::Answer(Ok("the trial goes on".into()))])
        }
        (Command::Reload, from) => match reference(facts) {
            Some(reference) => resolve(Query::Reload(reference, from), facts),
            None => command_done(&from, Err(follows_nothing(facts))),
        },
        (Command::Pin(version), from) => {
            let Some(follow) = facts.follow else { return command_done(&from, Err(follows_nothing(facts))) };
            let done = match &version {
                Some(version) => format!("pinned to {}/{version}", follow.name),
                None => format!("{follow} is followed again"),
            };
            let write = Effect::Write(Change::Pin { name: follow.name.clone(), version });
            (State::Recording { done, from }, vec![Effect::ForgetRetries, write])
        }
    }
}

fn follows_nothing(facts: &Facts<'_>) -> Refusal {
    Refusal(format!("model {} follows nothing: it has no `follow`", facts.model))
}

/// After a command the registry is polled at once. A candidate that was under way is taken up again by that poll, if it is
/// still wanted.
fn command_done(from: &Waiting, outcome: Result<String, Refusal>) -> Next {
    let answer = vec![Effect::Answer(outcome)];
    match from {
        Waiting::Idle => after(answer, (State::Waiting(Waiting::Idle), vec![Effect::PollNow])),
        Waiting::Downloading(_) | Waiting::OnTrial(..) => after(answer, abandon()),
    }
}

fn unloadable(origin: &Origin, reason: &str) -> String {
    format!("{origin} can't be loaded now: {reason}")
}

fn show(waiting: &Waiting) -> Effect {
    let step = match waiting {
        Waiting::Idle => Step::Idle,
        Waiting::Downloading(_) => Step::Downloading,
        Waiting::OnTrial(_, Stage::Shadow) => Step::Shadow,
        Waiting::OnTrial(_, Stage::Canary) => Step::Canary,
    };
    Effect::Show(step, waiting.candidate())
}

fn after(mut effects: Vec<Effect>, (state, more): Next) -> Next {
    effects.extend(more);
    (state, effects)
}
