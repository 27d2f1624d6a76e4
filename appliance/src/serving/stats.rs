//! Statistics that rollouts and monitoring read: computations and failures of a version, labels and confidence of a
//! model's answers. Cheap enough to be updated for every image.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cloud_sync::event::Score;
use inference::lanes::LaneError;
use serde::{Deserialize, Serialize};

/// Buckets of the latency histogram. Each upper bound is a quarter of an octave above the one before, from 16
/// microseconds to 8 minutes.
const BUCKETS: usize = 100;
/// Upper bound of the first bucket, in microseconds.
const FIRST_US: f64 = 16.0;

/// Steps of the confidence histogram, a tenth each.
pub const CONFIDENCE_STEPS: usize = 10;

/// Counters of one loaded version, updated concurrently.
#[derive(Debug)]
pub struct VersionStats {
    failed: AtomicU64,
    failed_here: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

/// A snapshot of [`VersionStats`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionCounts {
    /// Images on which the model failed, where neither the image nor this machine was the cause.
    pub failed: u64,
    /// Failures of this machine while it computed the model: the device or lane failed, or a resource was exhausted.
    #[serde(default)]
    pub failed_here: u64,
    #[serde(with = "sparse")]
    times: Vec<u64>,
}

/// Serializes a histogram as a map of its non-empty buckets.
mod sparse {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::BUCKETS;

    pub(super) fn serialize<S: Serializer>(times: &[u64], to: S) -> Result<S::Ok, S::Error> {
        let counts = times.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.collect::<BTreeMap<usize, &u64>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
        let counts = BTreeMap::<usize, u64>::deserialize(from)?;
        let mut times = vec![0; BUCKETS];
        for (bucket, count) in counts {
            times[bucket.min(BUCKETS - 1)] += count;
        }
        Ok(times)
    }
}

impl Default for VersionStats {
    fn default() -> Self {
        let (failed, failed_here) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { failed, failed_here, times: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl VersionStats {
    /// Counts a computed image and the time that it kept its lane busy.
    pub fn computed(&self, busy: Duration) {
        let octaves = (busy.as_secs_f64() * 1e6 / FIRST_US).max(1.0).log2();
        // Non-negative, at most a few hundred.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bucket = (octaves * 4.0).ceil() as usize;
        self.times[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an image on which the model failed.
    pub fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a lane's error if the model, its device or the machine is the cause, not the image or a deadline. Returns
    /// whether it was counted.
    pub fn failed_by(&self, error: &LaneError) -> bool {
        if !error.is_of_the_model() {
            return false;
        }
        if error.is_of_the_machine() {
            self.failed_here.fetch_add(1, Ordering::Relaxed);
        } else {
            self.fail();
        }
        true
    }

    /// A snapshot.
    pub fn read(&self) -> VersionCounts {
        VersionCounts {
            failed: self.failed.load(Ordering::Relaxed),
            failed_here: self.failed_here.load(Ordering::Relaxed),
            times: self.times.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
        }
    }
}

impl Default for VersionCounts {
    fn default() -> Self {
        Self { failed: 0, failed_here: 0, times: vec![0; BUCKETS] }
    }
}

impl VersionCounts {
    /// Computed images.
    pub fn computed(&self) -> u64 {
        self.times.iter().sum()
    }

    /// The difference to an `earlier` snapshot.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let times = self.times.iter().zip(&earlier.times).map(|(now, then)| now.saturating_sub(*then));
        Self {
            failed: self.failed.saturating_sub(earlier.failed),
            failed_here: self.failed_here.saturating_sub(earlier.failed_here),
            times: times.collect(),
        }
    }

    /// The sum of both.
    #[must_use]
    pub fn and(&self, more: &Self) -> Self {
        let times = self.times.iter().zip(&more.times).map(|(one, other)| one.saturating_add(*other));
        Self {
            failed: self.failed.saturating_add(more.failed),
            failed_here: self.failed_here.saturating_add(more.failed_here),
            times: times.collect(),
        }
    }

    /// The same, with failures of the machine counted as failures of the model.
    #[must_use]
    pub fn with_all_failures(&self) -> Self {
        let failed = self.failed.saturating_add(self.failed_here);
        Self { failed, failed_here: 0, times: self.times.clone() }
    }

    /// Share of images that failed, 0 to 1.
    pub fn error_rate(&self) -> f64 {
        let all = self.failed + self.computed();
        if all == 0 { 0.0 } else { self.failed as f64 / all as f64 }
    }

    /// The computation time at this quantile (0 to 1), at most a fifth too high; `None` without computations.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let all = self.computed();
        let wanted = (all as f64 * part).max(1.0);
        let mut seen = 0;
        let bucket = self.times.iter().position(|count| {
            seen += count;
            seen as f64 >= wanted
        });
        let bound = |bucket: usize| FIRST_US * (bucket as f64 / 4.0).exp2() / 1e6;
        bucket.filter(|_| all > 0).map(|bucket| Duration::from_secs_f64(bound(bucket)))
    }
}

/// Answers of one model since `since`.
#[derive(Clone, Debug)]
pub struct PredictionStats {
    /// Start of the period.
    pub since: Instant,
    /// Answers by best label.
    pub labels: BTreeMap<String, u64>,
    /// Answers by the best label's score, in tenths.
    pub confidence: [u64; CONFIDENCE_STEPS],
}

impl Default for PredictionStats {
    fn default() -> Self {
        Self { since: Instant::now(), labels: BTreeMap::new(), confidence: [0; CONFIDENCE_STEPS] }
    }
}

impl PredictionStats {
    /// Counts an answer.
    pub fn record(&mut self, best: &Score) {
        match self.labels.get_mut(&best.label) {
            Some(count) => *count += 1,
            None => drop(self.labels.insert(best.label.clone(), 1)),
        }
        // Clamped to 0..=1.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let step = (best.score.clamp(0.0, 1.0) * 10.0) as usize;
        self.confidence[step.min(CONFIDENCE_STEPS - 1)] += 1;
    }

    /// The sum of this and a `later` period.
    #[must_use]
    pub fn and(mut self, later: Self) -> Self {
        for (label, count) in later.labels {
            *self.labels.entry(label).or_default() += count;
        }
        for (sum, count) in self.confidence.iter_mut().zip(later.confidence) {
            *sum += count;
        }
        self
    }

    /// All answers.
    pub fn total(&self) -> u64 {
        self.confidence.iter().sum()
    }
}
