//! What a trial has shown: whether to wait, go on, or reject. Pure: numbers in, a verdict out.

use std::time::Duration;

use crate::config::RolloutConfig;
use crate::serving::TallyReading;

/// Fewer images than this show nothing about a share or a percentile.
const LEAST_IMAGES: u64 = 20;

/// Which trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// In the shadow of the one that serves.
    Shadow,
    /// Answering some cameras.
    Canary,
}

/// What has been seen of a version since its trial began.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// How long the trial has gone on.
    pub time: Duration,
    /// What the version on trial has done.
    pub trial: TallyReading,
    /// What the version that serves has done meanwhile.
    pub serving: TallyReading,
    /// Images that both computed.
    pub compared: u64,
    /// Those of them with another best label.
    pub disagreed: u64,
}

/// What follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// There is not enough yet.
    Wait,
    /// It may go on to the next step.
    Pass,
    /// It is rejected, for this reason.
    Fail(String),
}

/// Judges a trial. A bound that is passed rejects at once, as soon as enough images were seen to say so.
pub fn judge(stage: Stage, evidence: &Evidence, config: &RolloutConfig) -> Verdict {
    let images = evidence.trial.computed() + evidence.trial.failed;
    let wanted_images = wanted(stage, config).0;
    let enough = images >= LEAST_IMAGES || (wanted_images > 0 && images >= wanted_images);
    if enough && let Some(reason) = passed_bound(evidence, config) {
        return Verdict::Fail(reason);
    }
    let (most_images, least_time) = wanted(stage, config);
    if images >= most_images && evidence.time >= least_time {
        return Verdict::Pass;
    }
    if !config.patience.is_zero() && evidence.time >= config.patience {
        return Verdict::Pass;
    }
    Verdict::Wait
}

/// Images and time that a stage takes at least.
fn wanted(stage: Stage, config: &RolloutConfig) -> (u64, Duration) {
    match stage {
        Stage::Shadow => (config.shadow_images, config.shadow_time),
        Stage::Canary => (config.canary_images, config.canary_time),
    }
}

fn passed_bound(evidence: &Evidence, config: &RolloutConfig) -> Option<String> {
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
    if evidence.compared >= LEAST_IMAGES {
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
    let enough = evidence.trial.computed().min(evidence.serving.computed()) >= LEAST_IMAGES;
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
    use crate::serving::Tally;

    fn reading(count: u64, millis: u64, failed: u64) -> TallyReading {
        let tally = Tally::default();
        (0..count).for_each(|_| tally.computed(Duration::from_millis(millis)));
        (0..failed).for_each(|_| tally.fail());
        tally.read()
    }

    fn evidence(trial: TallyReading, disagreed: u64) -> Evidence {
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
        let judged = |stage, evidence: &Evidence| judge(stage, evidence, &config);
        assert_eq!(judged(Stage::Shadow, &evidence(reading(49, 10, 0), 0)), Verdict::Wait);
        assert_eq!(judged(Stage::Shadow, &evidence(reading(50, 10, 0), 0)), Verdict::Pass);
        assert_eq!(judged(Stage::Canary, &evidence(reading(39, 10, 0), 0)), Verdict::Wait);
        assert_eq!(judged(Stage::Canary, &evidence(reading(40, 10, 0), 8)), Verdict::Pass);
        let early = Evidence { time: Duration::from_secs(59), ..evidence(reading(4000, 10, 0), 0) };
        assert_eq!(judged(Stage::Canary, &early), Verdict::Wait);
        let late = Evidence { time: config.patience, ..evidence(reading(1, 10, 0), 0) };
        assert_eq!(judged(Stage::Canary, &late), Verdict::Pass);
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
            let Verdict::Fail(reason) = judge(Stage::Canary, &evidence, &config) else {
                panic!("not rejected for {word}");
            };
            assert!(reason.contains(word), "{reason} lacks {word}");
        }
        // Without a number of images, one that fails says nothing yet either.
        let by_time = RolloutConfig { canary_images: 0, ..config.clone() };
        assert_eq!(judge(Stage::Canary, &evidence(reading(0, 10, 1), 0), &by_time), Verdict::Pass);
        let early = Evidence { time: Duration::from_secs(59), ..evidence(reading(0, 10, 1), 0) };
        assert_eq!(judge(Stage::Canary, &early, &by_time), Verdict::Wait);
        // Five images say nothing yet.
        assert_eq!(judge(Stage::Canary, &evidence(reading(4, 100, 1), 4), &config), Verdict::Wait);
    }
}
