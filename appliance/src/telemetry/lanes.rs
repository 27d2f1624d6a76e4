//! What the lanes do, counted as it happens.

use std::time::Duration;

use inference::lanes::{Classified, ClassifyError, LaneError, LaneObserver, SkipReason};

use super::labels::{FailureLabels, LaneLabels, ReasonLabels, Stage};
use super::metrics::Metrics;

impl LaneObserver for Metrics {
    fn computed(
        &self,
        lane: usize,
        busy: Duration,
        waited: Duration,
        outcome: &Result<Classified, LaneError>,
    ) {
        self.lane_busy.get_or_create(&lane_labels(lane)).inc_by(busy.as_secs_f64());
        self.stage(Stage::Queue, waited);
        if let Ok(classified) = outcome {
            self.stage(Stage::Decode, classified.timings.decode);
            self.stage(Stage::Preprocess, classified.timings.preprocess);
            self.stage(Stage::Infer, classified.timings.infer);
        }
        if let Err(LaneError::Classify(ClassifyError::Engine(error))) = outcome
            && let Some(reason) = error.fault_of_scores()
        {
            self.invalid_scores.get_or_create(&ReasonLabels { reason }).inc();
        }
    }

    fn ran(&self, images: usize) {
        self.engine_batch.observe(images as f64);
    }

    fn skipped(&self, _lane: usize, reason: SkipReason) {
        let reason = match reason {
            SkipReason::Cancelled => "cancelled",
            SkipReason::Deadline => "deadline",
        };
        self.skipped.get_or_create(&ReasonLabels { reason }).inc();
    }

    fn device_failed(&self, lane: usize, kind: &'static str, retried: usize) {
        let LaneLabels { lane } = lane_labels(lane);
        self.device_failures.get_or_create(&FailureLabels { lane, kind }).inc();
        self.device_retries.inc_by(retried as u64);
    }

    fn stalled(&self, lane: usize) {
        self.lane_stalls.get_or_create(&lane_labels(lane)).inc();
    }

    fn restarted(&self, lane: usize) {
        self.lane_restarts.get_or_create(&lane_labels(lane)).inc();
    }
}

fn lane_labels(lane: usize) -> LaneLabels {
    LaneLabels { lane: u32::try_from(lane).unwrap_or(u32::MAX) }
}
