//! Every reachable state with every input, under facts of all kinds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::state::Rollback;
use super::*;
use crate::config::RolloutConfig;
use crate::rollout::entry::{Entry, Monitored, Starts};
use crate::rollout::evaluate::Evidence;
use crate::rollout::loading::LoadRetries;
use crate::serving::{VersionCounts, VersionStats};

const BOOT: &str = "boot";
const MONITOR_TIME: Duration = Duration::from_secs(60);

fn version(version: &str) -> ModelVersion {
    ModelVersion {
        name: "fish".into(),
        version: version.into(),
        aliases: Vec::new(),
        tags: BTreeMap::new(),
        source: format!("here:{version}"),
        created: None,
    }
}

fn origin(of: &str) -> Origin {
    Origin::of(&version(of))
}

fn placed(version: &str) -> DeployedVersion {
    DeployedVersion::new("digest", &origin(version))
}

/// What the facts borrow.
#[derive(Clone)]
struct World {
    config: RolloutConfig,
    follow: Option<ModelReference>,
    entry: Entry,
    current: Option<Current>,
    standby: bool,
    configured: bool,
    retries: LoadRetries,
    now: Instant,
}

impl World {
    fn facts(&self) -> Facts<'_> {
        Facts {
            model: "fish",
            config: &self.config,
            follow: self.follow.as_ref(),
            entry: &self.entry,
            current: self.current.clone(),
            standby: self.standby,
            configured: self.configured,
            retries: &self.retries,
            boot: BOOT,
            now: self.now,
        }
    }

    fn has_trials(&self) -> bool {
        self.config.canary > 0.0
    }
}

fn config(trials: bool) -> RolloutConfig {
    let images = if trials { 5 } else { 0 };
    RolloutConfig {
        shadow_images: images,
        shadow_time: Duration::ZERO,
        canary: if trials { 10.0 } else { 0.0 },
        canary_images: images,
        canary_time: Duration::ZERO,
        monitor_time: MONITOR_TIME,
        ..RolloutConfig::default()
    }
}

fn current(version: Option<&str>) -> Current {
    let origin = version.map(origin);
    let description = origin.as_ref().map_or_else(|| "bundle".to_owned(), ToString::to_string);
    Current { origin, description }
}

/// Version 1 serves, after version 0; both trials are configured.
fn world() -> World {
    let entry = Entry { serving: Some(placed("1")), previous: Some(placed("0")), ..Entry::default() };
    World {
        config: config(true),
        follow: Some("fish@champion".parse().unwrap()),
        entry,
        current: Some(current(Some("1"))),
        standby: false,
        configured: true,
        retries: LoadRetries::default(),
        now: Instant::now(),
    }
}

fn worlds() -> Vec<World> {
    let base = world();
    let mut rejected = base.clone();
    rejected.entry.reject(&origin("2"), "it failed");
    rejected.entry.previous = None;
    let mut pinned = base.clone();
    pinned.entry.pinned = Some("2".into());
    let mut crashed = base.clone();
    let mut starts = Starts::first(BOOT);
    (0..2).for_each(|_| starts.add(BOOT));
    crashed.entry.monitored = Some(Monitored {
        time: Duration::ZERO,
        done: VersionCounts::default(),
        before: VersionCounts::default(),
        compared: 0,
        disagreed: 0,
        ordered: false,
        starts,
    });
    let mut waits = base.clone();
    for version in ["1", "2"] {
        waits.retries.failed(&origin(version), "no memory", Duration::from_secs(60), base.now);
    }
    let empty = World { entry: Entry::default(), ..base.clone() };
    let unfollowed = World { follow: None, ..base.clone() };
    let mut worlds = Vec::new();
    for one in [base, rejected, pinned, crashed, waits, empty, unfollowed] {
        for serving in [None, Some(current(None)), Some(current(Some("1")))] {
            for (standby, configured, trials) in
                [(false, false, true), (false, true, true), (true, false, true), (false, true, false)]
            {
                let (config, current) = (config(trials), serving.clone());
                worlds.push(World { config, current, standby, configured, ..one.clone() });
            }
        }
    }
    worlds
}

fn evidence(seconds: u64, computed: u64, failed: u64) -> Evidence {
    let reading = |computed, failed| {
        let tally = VersionStats::default();
        (0..computed).for_each(|_| tally.computed(Duration::from_millis(1)));
        (0..failed).for_each(|_| tally.fail());
        tally.read()
    };
    let (trial, serving) = (reading(computed, failed), reading(100, 0));
    Evidence { time: Duration::from_secs(seconds), trial, serving, compared: 0, disagreed: 0 }
}

fn inputs() -> Vec<Input> {
    let mut inputs = vec![
        Input::PollDue,
        Input::StandbyExpired,
        Input::Resolved(Ok(version("1"))),
        Input::Resolved(Ok(version("2"))),
        Input::Resolved(Err(None)),
        Input::Resolved(Err(Some("away".into()))),
        Input::Downloaded(Ok("digest".into())),
        Input::Loaded(Ok("fish/0".into())),
        Input::TrialEvidence(evidence(1, 100, 0)),
        Input::TrialEvidence(evidence(1, 50, 50)),
        Input::TrialEvidence(evidence(1, 0, 0)),
        Input::Command(Command::Promote),
        Input::Command(Command::Rollback),
        Input::Command(Command::Reload),
        Input::Command(Command::Pin(None)),
        Input::Command(Command::Pin(Some("1".into()))),
        Input::Written(Ok(())),
        Input::Written(Err("the disk is full".into())),
        Input::Stop,
    ];
    for failure in [Failure::Reject, Failure::Unclear, Failure::Later] {
        let failure = failure("it failed".into());
        inputs.extend([Input::Downloaded(Err(failure.clone())), Input::Loaded(Err(failure))]);
    }
    for (seconds, failed) in [(1, 0), (1, 50), (60, 0), (60, 50)] {
        for save in [false, true] {
            inputs.push(Input::MonitorEvidence { evidence: evidence(seconds, 50, failed), save });
        }
    }
    inputs
}

/// A transition, and the world in which it happens.
struct Edge<'a> {
    world: &'a World,
    state: &'a State,
    input: &'a Input,
    next: &'a State,
    effects: &'a [Effect],
}

impl Edge<'_> {
    fn swap(&self) -> Option<Swap> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Swap(swap) => Some(*swap),
            _ => None,
        })
    }

    fn text(&self) -> String {
        let Edge { state, input, next, effects, world } = self;
        let (entry, current) = (&world.entry, &world.current);
        format!("{state:?}\n + {input:?}\n-> {next:?}\n   {effects:?}\nwhere {entry:?}, {current:?}")
    }
}

/// Has all transitions between states that can be reached checked; returns the states.
fn explore(check: impl Fn(&Edge<'_>)) -> Vec<State> {
    let (worlds, inputs) = (worlds(), inputs());
    let mut states = vec![State::Waiting(Waiting::Idle)];
    let mut at = 0;
    while let Some(state) = states.get(at).cloned() {
        for world in &worlds {
            for input in &inputs {
                let (next, effects) = transition(state.clone(), input.clone(), &world.facts());
                check(&Edge { world, state: &state, input, next: &next, effects: &effects });
                if !states.contains(&next) {
                    states.push(next);
                }
            }
        }
        at += 1;
        assert!(at < 5000, "the states have no end");
    }
    states
}

fn has_result(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Resolve(_) | Effect::LoadCandidate(_) | Effect::LoadReplacement(_) | Effect::Write(_)
    )
}

#[test]
fn all_states_are_reached_and_each_that_does_not_wait_has_one_effect_with_a_result() {
    let states = explore(|edge| {
        let results = edge.effects.iter().filter(|effect| has_result(effect)).count();
        match edge.next {
            State::Waiting(_) | State::Stopped => assert_eq!(results, 0, "{}", edge.text()),
            next if next == edge.state => assert!(edge.effects.is_empty(), "{}", edge.text()),
            _ => {
                assert_eq!(results, 1, "{}", edge.text());
                assert!(edge.effects.last().is_some_and(has_result), "{}", edge.text());
            }
        }
        if let (State::Stopped, false) = (edge.next, *edge.state == State::Stopped) {
            assert!(edge.effects.contains(&Effect::SaveMonitoring { stopped: true }), "{}", edge.text());
        }
    });
    let texts: Vec<String> = states.iter().map(|state| format!("{state:?}")).collect();
    let reached = |kind: &str, part: &str| {
        let found = texts.iter().any(|text| text.starts_with(kind) && text.contains(part));
        assert!(found, "{kind} {part} is not reached");
    };
    let queries = "Resolving(Poll Resolving(Reload Resolving(Downloaded Resolving(OnTrial";
    let others = "Waiting(Downloading Restoring Loading Promoting Recording Stopped";
    queries.split(' ').chain(others.split(' ')).for_each(|kind| reached(kind, ""));
    ["Shadow", "Canary"].iter().for_each(|stage| reached("Waiting(OnTrial", stage));
    ["Command", "Monitoring", "Crashes"]
        .iter()
        .for_each(|by| reached("RollingBack", &format!("cause: {by}")));
}

#[test]
fn a_candidate_that_has_not_succeeded_is_never_promoted() {
    explore(|edge| {
        if edge.swap() == Some(Swap::Promoted) {
            assert!(matches!(edge.state, State::Promoting(_)), "{}", edge.text());
        }
        let State::Promoting(promotion) = edge.next else { return };
        let no_trial = edge.world.current.is_none() || !edge.world.has_trials();
        match (edge.state, edge.input) {
            (state, _) if state == edge.next => {}
            (State::Waiting(Waiting::OnTrial(placed, _)), Input::Command(Command::Promote)) => {
                assert!(promotion.ordered && *placed == promotion.placed, "{}", edge.text());
            }
            (State::Loading(placed), Input::Loaded(Ok(_))) => {
                assert!(no_trial && !promotion.ordered && *placed == promotion.placed, "{}", edge.text());
            }
            (State::Waiting(Waiting::OnTrial(placed, stage)), Input::TrialEvidence(evidence)) => {
                assert!(evidence.trial.computed() > 0 && evidence.trial.failed == 0, "{}", edge.text());
                assert!(*stage == Stage::Canary || no_trial, "{}", edge.text());
                assert!(!promotion.ordered && *placed == promotion.placed, "{}", edge.text());
            }
            _ => panic!("{}", edge.text()),
        }
    });
}

/// Whether a version is on its way.
fn has_candidate(state: &State) -> bool {
    match state {
        State::Waiting(from) | State::Recording { from, .. } => from.candidate().is_some(),
        State::Resolving(Query::Reload(_, from)) => from.candidate().is_some(),
        State::Resolving(query) => *query != Query::Poll,
        State::RollingBack(rollback) => rollback.cause.interrupted().is_some_and(|w| w.candidate().is_some()),
        State::Loading(_) | State::Promoting(_) => true,
        State::Restoring(_) | State::Stopped => false,
    }
}

#[test]
fn a_failure_leaves_the_current_version_serving() {
    explore(|edge| {
        let failed = match edge.input {
            Input::Resolved(outcome) => outcome.is_err(),
            Input::Downloaded(outcome) | Input::Loaded(outcome) => outcome.is_err(),
            Input::Written(outcome) => outcome.is_err(),
            Input::TrialEvidence(evidence) => evidence.trial.failed > 0,
            Input::PollDue | Input::StandbyExpired | Input::Command(_) | Input::Stop => true,
            Input::MonitorEvidence { .. } => true,
        };
        if failed {
            assert_eq!(edge.swap(), None, "{}", edge.text());
        }
        // What was on its way leaves nothing behind.
        if has_candidate(edge.state) && !has_candidate(edge.next) {
            let left = edge.effects.contains(&Effect::Discard) || edge.swap() == Some(Swap::Promoted);
            assert!(left, "{}", edge.text());
        }
    });
}

#[test]
fn the_journal_is_written_before_the_routes_change() {
    explore(|edge| {
        let written = matches!(edge.input, Input::Written(Ok(())));
        match edge.swap() {
            None => {}
            Some(Swap::Promoted) => {
                assert!(written && matches!(edge.state, State::Promoting(_)), "{}", edge.text());
            }
            Some(Swap::RolledBack) => {
                let loaded = matches!(edge.state, State::RollingBack(r) if r.replacement.is_some());
                assert!(written && loaded, "{}", edge.text());
            }
            // The journal has named it since before.
            Some(Swap::Restored) => assert!(matches!(edge.state, State::Restoring(_)), "{}", edge.text()),
        }
        if edge.next == edge.state {
            return;
        }
        match edge.next {
            State::Promoting(Promotion { placed, ordered, .. }) => {
                let change = Change::Promote { placed: placed.clone(), ordered: *ordered };
                assert!(edge.effects.contains(&Effect::Write(change)), "{}", edge.text());
            }
            State::RollingBack(Rollback { undone, to, replacement: Some(_), reason, .. }) => {
                let (undone, reason, to) = (undone.clone(), reason.clone(), to.clone());
                let change = Change::RollBack { undone, reason, to };
                assert!(edge.effects.contains(&Effect::Write(change)), "{}", edge.text());
            }
            State::Restoring(placed) => {
                assert_eq!(edge.world.entry.serving.as_ref(), Some(placed), "{}", edge.text());
            }
            _ => {}
        }
    });
}

#[test]
fn a_rejected_version_is_not_tried_again_and_a_pinned_one_is_followed() {
    explore(|edge| {
        for effect in edge.effects {
            match effect {
                Effect::Download(version) => {
                    let origin = Origin::of(version);
                    assert_eq!(edge.world.entry.rejection(&origin), None, "{}", edge.text());
                    assert_eq!(edge.world.facts().waits(&origin), None, "{}", edge.text());
                }
                Effect::Resolve(reference) => match &edge.world.entry.pinned {
                    Some(pinned) => {
                        assert_eq!(reference.which, Which::Version(pinned.clone()), "{}", edge.text());
                    }
                    None => assert_eq!(Some(reference), edge.world.follow.as_ref(), "{}", edge.text()),
                },
                _ => {}
            }
        }
        let entered = matches!(edge.next, State::Waiting(Waiting::Downloading(_)));
        let was_under_way = match edge.state {
            State::Waiting(Waiting::Downloading(_)) => true,
            State::RollingBack(rollback) => rollback.cause.interrupted().is_some(),
            _ => false,
        };
        let downloads = edge.effects.iter().any(|effect| matches!(effect, Effect::Download(_)));
        assert_eq!(downloads, entered && !was_under_way, "{}", edge.text());
    });
}

#[test]
fn each_command_is_answered_once() {
    /// Whether an operator waits for the outcome of this state.
    fn owes(state: &State) -> bool {
        match state {
            State::Resolving(Query::Reload(..)) | State::Recording { .. } => true,
            State::RollingBack(rollback) => matches!(rollback.cause, Cause::Command(_)),
            State::Promoting(promotion) => promotion.ordered,
            _ => false,
        }
    }
    explore(|edge| {
        let asked = matches!((edge.state, edge.input), (State::Waiting(_), Input::Command(_)));
        let answers = edge.effects.iter().filter(|effect| matches!(effect, Effect::Answer(_))).count();
        if !matches!(edge.input, Input::Stop) {
            let owed = usize::from(owes(edge.state)) + usize::from(asked);
            assert_eq!(owed, answers + usize::from(owes(edge.next)), "{}", edge.text());
        }
    });
}

/// Feeds inputs one after another and returns the last state and its effects.
fn walk(world: &World, state: State, inputs: impl IntoIterator<Item = Input>) -> Next {
    let begin = (state, Vec::new());
    inputs.into_iter().fold(begin, |(state, _), input| transition(state, input, &world.facts()))
}

#[test]
fn a_new_version_is_tried_in_the_shadow_and_as_canary_and_promoted() {
    let world = world();
    let idle = State::Waiting(Waiting::Idle);
    let candidate = placed("2");
    let (state, effects) = walk(&world, idle.clone(), [Input::PollDue, Input::Resolved(Ok(version("2")))]);
    assert_eq!(state, State::Waiting(Waiting::Downloading(version("2"))));
    let shown = Effect::Show(Step::Downloading, Some("fish/2".into()));
    assert_eq!(effects, [shown, Effect::Download(version("2"))]);
    let (state, effects) =
        walk(&world, state, [Input::Downloaded(Ok("digest".into())), Input::Resolved(Ok(version("2")))]);
    assert_eq!(state, State::Loading(candidate.clone()));
    let shown = Effect::Show(Step::Loading, Some("fish/2".into()));
    assert_eq!(effects, [shown, Effect::LoadCandidate(candidate.clone())]);
    // The route is there when the step is seen.
    let (state, effects) = walk(&world, state, [Input::Loaded(Ok("fish/2".into()))]);
    let shown = Effect::Show(Step::Shadow, Some("fish/2".into()));
    assert_eq!(effects, [Effect::StartTrial(Stage::Shadow), shown]);
    let pass = || Input::TrialEvidence(evidence(1, 100, 0));
    let (state, effects) = walk(&world, state, [pass()]);
    let shown = Effect::Show(Step::Canary, Some("fish/2".into()));
    assert_eq!(effects, [Effect::StartTrial(Stage::Canary), shown]);
    let (state, effects) = walk(&world, state, [pass()]);
    let change = Change::Promote { placed: candidate, ordered: false };
    assert_eq!(effects, [Effect::Write(change)]);
    let (state, effects) = walk(&world, state, [Input::Written(Ok(()))]);
    assert_eq!(state, idle);
    assert_eq!(effects.first(), Some(&Effect::Swap(Swap::Promoted)));
    assert_eq!(effects.last(), Some(&Effect::PollNow));
}

#[test]
fn what_is_on_its_way_is_dropped_when_something_else_is_followed() {
    let world = world();
    let downloaded = State::Resolving(Query::Downloaded(placed("2")));
    let on_trial = State::Waiting(Waiting::OnTrial(placed("2"), Stage::Canary));
    let moved = || Input::Resolved(Ok(version("3")));
    for (state, inputs) in
        [(downloaded.clone(), vec![moved()]), (on_trial.clone(), vec![Input::PollDue, moved()])]
    {
        let (state, effects) = walk(&world, state, inputs);
        assert_eq!(state, State::Waiting(Waiting::Idle));
        assert_eq!((effects.first(), effects.last()), (Some(&Effect::Discard), Some(&Effect::PollNow)));
    }
    // A registry that does not answer has named nothing else.
    let away = || Input::Resolved(Err(Some("away".into())));
    assert_eq!(walk(&world, downloaded, [away()]).0, State::Loading(placed("2")));
    assert_eq!(walk(&world, on_trial.clone(), [Input::PollDue, away()]).0, on_trial);
}

#[test]
fn a_promoted_version_that_exceeds_a_limit_is_rolled_back_wherever_the_rollout_is() {
    let world = world();
    let bad = || Input::MonitorEvidence { evidence: evidence(1, 50, 50), save: false };
    let loaded = || Input::Loaded(Ok("fish/0".into()));
    let downloading = State::Waiting(Waiting::Downloading(version("2")));
    let on_trial = State::Waiting(Waiting::OnTrial(placed("2"), Stage::Shadow));
    let idle = State::Waiting(Waiting::Idle);
    for (state, then) in
        [(idle.clone(), idle.clone()), (downloading.clone(), downloading.clone()), (on_trial.clone(), idle)]
    {
        let (next, effects) = walk(&world, state, [bad(), loaded(), Input::Written(Ok(()))]);
        assert_eq!(next, then);
        assert_eq!(effects.first(), Some(&Effect::Swap(Swap::RolledBack)));
    }
    // Where that fails, everything goes on as before, and it is tried again.
    for state in [downloading, on_trial] {
        for inputs in [
            vec![bad(), Input::Loaded(Err(Failure::Later("no memory".into())))],
            vec![bad(), loaded(), Input::Written(Err("the disk is full".into()))],
        ] {
            let (next, effects) = walk(&world, state.clone(), inputs);
            assert_eq!(next, state);
            assert_eq!(effects.last(), Some(&Effect::PostponeMonitoring));
        }
    }
}
