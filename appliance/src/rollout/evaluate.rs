//! Evaluation of trials and of promoted versions: whether to wait, continue, or reject. Pure functions of the evidence.

use std::time::Duration;

use crate::config::RolloutConfig;
use crate::serving::VersionCounts;

/// Fewer images than this say nothing about a share or a percentile, as long as more may follow.
const MIN_IMAGES: u64 = 20;

/// A stage of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The version computes copies of what the current one answers.
    Shadow,
    /// The version answers some cameras.
    Canary,
}

/// What has been observed of a version since its trial, or its monitoring, began.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Evidence {
    /// The duration so far.
    pub(super) time: Duration,
    /// What the version has done.
    pub(super) trial: VersionCounts,
    /// What the version it is compared with has done.
    pub(super) serving: VersionCounts,
    /// Images that both computed.
    pub(super) compared: u64,
    /// Those of them with another best label.
    pub(super) disagreed: u64,
}

/// The result of a trial so far.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TrialDecision {
    /// The evidence is not sufficient yet.
    Wait,
    /// The next stage, or the promotion, may follow.
    Pass,
    /// The version is rejected, for this reason.
    Fail(String),
}

/// Evaluates a trial. An exceeded limit rejects as soon as enough images were seen; at the end of a trial, by its images and
/// time or by its timeout, whatever was seen decides. A version that has computed nothing never passes.
///
/// Every kind of failure counts, the machine's too: a version may well be the reason that its device fails, and no client
/// depends on it yet.
pub(super) fn evaluate_trial(stage: Stage, evidence: &Evidence, config: &RolloutConfig) -> TrialDecision {
    let evidence = &Evidence { trial: evidence.trial.with_all_failures(), ..evidence.clone() };
    let images = evidence.trial.computed() + evidence.trial.failed;
    let (wanted_images, least_time) = wanted(stage, config);
    let complete = images >= wanted_images && evidence.time >= least_time;
    let timed_out = !config.max_trial_time.is_zero() && evidence.time >= config.max_trial_time;
    let over = complete || timed_out;
    let enough = images >= MIN_IMAGES || (wanted_images > 0 && images >= wanted_images);
    if (enough || over)
        && let Some(reason) = exceeded_limit(evidence, config, over)
    {
        return TrialDecision::Fail(reason);
    }
    if over && evidence.trial.computed() > 0 {
        return TrialDecision::Pass;
    }
    TrialDecision::Wait
}

/// Evaluates a version that was promoted, and returns the reason for a rollback. At the end of the time fewer images decide,
/// too, but not on labels: it is known by then that the version works, and a few images on which two versions differ are no
/// reason to undo that.
///
/// Failures of the machine do not count: the version before would have met the same, and a device that fails must not cost a
/// good version.
pub(super) fn evaluate_promoted(evidence: &Evidence, config: &RolloutConfig) -> Option<String> {
    let images = evidence.trial.computed() + evidence.trial.failed;
    let over = evidence.time >= config.monitor_time;
    if images < MIN_IMAGES && !over {
        return None;
    }
    let few = evidence.compared < MIN_IMAGES;
    let labels = if few { Evidence { compared: 0, ..evidence.clone() } } else { evidence.clone() };
    exceeded_limit(&labels, config, over)
}

/// Minimum of images and time of a stage.
fn wanted(stage: Stage, config: &RolloutConfig) -> (u64, Duration) {
    match stage {
        Stage::Shadow => (config.shadow_images, config.shadow_time),
        Stage::Canary => (config.canary_images, config.canary_time),
    }
}

/// The limit that is exceeded. With `over` no more evidence follows, so that fewer images than [`MIN_IMAGES`] decide.
fn exceeded_limit(evidence: &Evidence, config: &RolloutConfig, over: bool) -> Option<String> {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let errors = evidence.trial.error_rate();
    if errors > config.max_error_rate {
        return Some(format!(
            "it failed on {} of {} images, {} are allowed (rollout.max_error_rate)",
            evidence.trial.failed,
            evidence.trial.failed + evidence.trial.computed(),
            percent(config.max_error_rate)
        ));
    }
    if evidence.compared >= if over { 1 } else { MIN_IMAGES } {
        let share = evidence.disagreed as f64 / evidence.compared as f64;
        if share > config.max_disagreement {
            return Some(format!(
                "on {} of {} images its best label was another than that of the version that serves, {} are allowed \
                 (rollout.max_disagreement)",
                evidence.disagreed,
                evidence.compared,
                percent(config.max_disagreement)
            ));
        }
    }
    let enough = evidence.trial.computed().min(evidence.serving.computed()) >= MIN_IMAGES;
    if let (true, Some(new), Some(old)) =
        (enough, evidence.trial.quantile(0.95), evidence.serving.quantile(0.95))
        && new.as_secs_f64() > old.as_secs_f64() * config.max_latency_ratio
    {
        return Some(format!(
            "it computes an image in {:.1} ms at the 95th percentile, the version that serves in {:.1} ms; {} times as \
             long is allowed (rollout.max_latency_ratio)",
            new.as_secs_f64() * 1e3,
            old.as_secs_f64() * 1e3,
            config.max_latency_ratio
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::VersionStats;
    use inference::engine::EngineError;
    use inference::lanes::{ClassifyError, LaneError};

    fn reading(count: u64, millis: u64, failed: u64) -> VersionCounts {
        let tally = VersionStats::default();
        (0..count).for_each(|_| tally.computed(Duration::from_millis(millis)));
        (0..failed).for_each(|_| tally.fail());
        tally.read()
    }

    fn evidence(trial: VersionCounts, disagreed: u64) -> Evidence {
        let compared = trial.computed();
        let time = Duration::from_secs(100);
        Evidence { time, trial, serving: reading(1000, 10, 0), compared, disagreed }
    }

    fn config() -> RolloutConfig {
        RolloutConfig {
            shadow_images: 50,
            canary_images: 40,
            canary_time: Duration::from_secs(60),
            ..RolloutConfig::default()
        }
    }

    #[test]
    fn a_trial_passes_when_images_and_time_are_enough_and_nothing_is_past_its_bound() {
        let config = config();
        let evaluated = |stage, evidence: &Evidence| evaluate_trial(stage, evidence, &config);
        assert_eq!(evaluated(Stage::Shadow, &evidence(reading(49, 10, 0), 0)), TrialDecision::Wait);
        assert_eq!(evaluated(Stage::Shadow, &evidence(reading(50, 10, 0), 0)), TrialDecision::Pass);
        assert_eq!(evaluated(Stage::Canary, &evidence(reading(39, 10, 0), 0)), TrialDecision::Wait);
        assert_eq!(evaluated(Stage::Canary, &evidence(reading(40, 10, 0), 8)), TrialDecision::Pass);
        let early = Evidence { time: Duration::from_secs(59), ..evidence(reading(4000, 10, 0), 0) };
        assert_eq!(evaluated(Stage::Canary, &early), TrialDecision::Wait);
        let late = |trial, disagreed| Evidence { time: config.max_trial_time, ..evidence(trial, disagreed) };
        assert_eq!(evaluated(Stage::Canary, &late(reading(1, 10, 0), 0)), TrialDecision::Pass);
    }

    #[test]
    fn a_timeout_judges_what_there_is_and_promotes_nothing_that_has_not_succeeded() {
        let config = config();
        let late = |trial, disagreed| {
            let evidence = Evidence { time: config.max_trial_time, ..evidence(trial, disagreed) };
            evaluate_trial(Stage::Canary, &evidence, &config)
        };
        for (failing, disagreed, word) in [
            (reading(0, 10, 19), 0, "failed on 19 of 19"),
            (reading(18, 10, 1), 0, "failed on 1 of 19"),
            (reading(4, 10, 0), 4, "max_disagreement"),
        ] {
            let TrialDecision::Fail(reason) = late(failing, disagreed) else {
                panic!("not rejected: {word}")
            };
            assert!(reason.contains(word), "{reason}");
        }
        // Without a single image there is nothing to promote it for, nor to reject it for.
        assert_eq!(late(reading(0, 10, 0), 0), TrialDecision::Wait);
        assert_eq!(late(reading(19, 10, 0), 0), TrialDecision::Pass);
        let by_time = RolloutConfig { canary_images: 0, ..config.clone() };
        assert_eq!(
            evaluate_trial(Stage::Canary, &evidence(reading(0, 10, 0), 0), &by_time),
            TrialDecision::Wait
        );
    }

    #[test]
    fn a_promoted_version_is_held_against_all_limits() {
        let config = config();
        let promoted = |trial| Evidence { compared: 0, ..evidence(trial, 0) };
        assert_eq!(evaluate_promoted(&promoted(reading(100, 10, 0)), &config), None);
        assert_eq!(evaluate_promoted(&promoted(reading(0, 10, 19)), &config), None);
        let over = Evidence { time: config.monitor_time, ..promoted(reading(0, 10, 19)) };
        assert!(
            evaluate_promoted(&over, &config).is_some_and(|reason| reason.contains("failed on 19 of 19"))
        );
        let failing = evaluate_promoted(&promoted(reading(10, 10, 10)), &config).unwrap();
        assert!(failing.contains("failed on 10 of 20"), "{failing}");
        let slow = evaluate_promoted(&promoted(reading(100, 30, 0)), &config).unwrap();
        assert!(slow.contains("max_latency_ratio"), "{slow}");
        // After a restart there is nothing to compare its times with.
        let restarted = Evidence { serving: VersionCounts::default(), ..promoted(reading(100, 30, 0)) };
        assert_eq!(evaluate_promoted(&restarted, &config), None);
        let compared =
            |compared, disagreed| Evidence { compared, ..evidence(reading(100, 10, 0), disagreed) };
        let other = evaluate_promoted(&compared(20, 5), &config).unwrap();
        assert!(other.contains("5 of 20") && other.contains("max_disagreement"), "{other}");
        assert_eq!(evaluate_promoted(&compared(20, 4), &config), None);
        // A few images are no reason, at the end of the time either.
        let few = Evidence { time: config.monitor_time, ..compared(19, 19) };
        assert_eq!(evaluate_promoted(&few, &config), None);
    }

    #[test]
    fn what_the_machine_fails_on_counts_on_trial_alone() {
        let config = config();
        let tally = VersionStats::default();
        (0..10).for_each(|_| tally.computed(Duration::from_millis(10)));
        for error in [
            LaneError::NoDevice,
            LaneError::DeviceFailed,
            ClassifyError::Stalled { limit: Duration::from_secs(1) }.into(),
            ClassifyError::Engine(EngineError::Decoder("it was lost".into())).into(),
        ] {
            (0..10).for_each(|_| assert!(tally.failed_by(&error), "{error}"));
        }
        let failing = Evidence { time: config.monitor_time, ..evidence(tally.read(), 0) };
        assert_eq!(evaluate_promoted(&failing, &config), None);
        let TrialDecision::Fail(reason) = evaluate_trial(Stage::Canary, &failing, &config) else {
            panic!("not rejected")
        };
        assert!(reason.contains("failed on 40 of 50"), "{reason}");
        // A panic may be the version's, and an image that is late is nobody's failure.
        (0..40).for_each(|_| assert!(tally.failed_by(&LaneError::Panicked)));
        assert!(!tally.failed_by(&LaneError::DeadlinePassed));
        let failing = Evidence { trial: tally.read(), ..failing };
        assert!(evaluate_promoted(&failing, &config).unwrap().contains("failed on 40 of 50"));
    }

    #[test]
    fn each_bound_rejects_and_says_which() {
        let config = config();
        for (evidence, word) in [
            (evidence(reading(98, 10, 2), 0), "max_error_rate"),
            (evidence(reading(100, 10, 0), 21), "max_disagreement"),
            (evidence(reading(100, 30, 0), 0), "max_latency_ratio"),
            (evidence(reading(0, 10, 40), 0), "failed on 40 of 40"),
        ] {
            let TrialDecision::Fail(reason) = evaluate_trial(Stage::Canary, &evidence, &config) else {
                panic!("not rejected for {word}");
            };
            assert!(reason.contains(word), "{reason} lacks {word}");
        }
        // Without a number of images, one that fails says nothing yet either.
        let by_time = RolloutConfig { canary_images: 0, ..config.clone() };
        let early = Evidence { time: Duration::from_secs(59), ..evidence(reading(0, 10, 1), 0) };
        assert_eq!(evaluate_trial(Stage::Canary, &early, &by_time), TrialDecision::Wait);
        // At the end of the time it does.
        assert!(matches!(
            evaluate_trial(Stage::Canary, &evidence(reading(0, 10, 1), 0), &by_time),
            TrialDecision::Fail(_)
        ));
        // Five images say nothing yet.
        assert_eq!(
            evaluate_trial(Stage::Canary, &evidence(reading(4, 100, 1), 4), &config),
            TrialDecision::Wait
        );
    }
}
