//! What a version has done: answers, faults, and how long its computations took, cheap enough for every request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use inference::lanes::LaneError;
use serde::{Deserialize, Serialize};

/// Bounds of the histogram grow by a quarter of an octave, from 16 microseconds to 8 minutes.
const BUCKETS: usize = 100;
/// Microseconds up to which the first bucket counts.
const FIRST_US: f64 = 16.0;

/// Counters that many write.
#[derive(Debug)]
pub struct Tally {
    failed: AtomicU64,
    failed_here: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

/// A tally at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyReading {
    /// Images that the model failed on, for no fault of theirs or of this machine.
    pub failed: u64,
    /// Those that this machine failed on while it had the model: its device or lane failed, or it ran out of something.
    #[serde(default)]
    pub failed_here: u64,
    #[serde(with = "sparse")]
    times: Vec<u64>,
}

/// A histogram as a map of its buckets that are not empty.
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

impl Default for Tally {
    fn default() -> Self {
        let (failed, failed_here) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { failed, failed_here, times: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Tally {
    /// An image was computed in this time of the lane's.
    pub fn computed(&self, busy: Duration) {
        let octaves = (busy.as_secs_f64() * 1e6 / FIRST_US).max(1.0).log2();
        // Not negative and at most a few hundred.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bucket = (octaves * 4.0).ceil() as usize;
        self.times[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// The model failed on an image.
    pub fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// A lane had no scores for an image. Counts it where that is no fault of the image or the moment, and says whether it is.
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

    /// The numbers now.
    pub fn read(&self) -> TallyReading {
        TallyReading {
            failed: self.failed.load(Ordering::Relaxed),
            failed_here: self.failed_here.load(Ordering::Relaxed),
            times: self.times.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
        }
    }
}

impl Default for TallyReading {
    fn default() -> Self {
        Self { failed: 0, failed_here: 0, times: vec![0; BUCKETS] }
    }
}

impl TallyReading {
    /// Images that were computed.
    pub fn computed(&self) -> u64 {
        self.times.iter().sum()
    }

    /// What has come since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let times = self.times.iter().zip(&earlier.times).map(|(now, then)| now.saturating_sub(*then));
        Self {
            failed: self.failed.saturating_sub(earlier.failed),
            failed_here: self.failed_here.saturating_sub(earlier.failed_here),
            times: times.collect(),
        }
    }

    /// This and `more` together.
    #[must_use]
    pub fn and(&self, more: &Self) -> Self {
        let times = self.times.iter().zip(&more.times).map(|(one, other)| one.saturating_add(*other));
        Self {
            failed: self.failed.saturating_add(more.failed),
            failed_here: self.failed_here.saturating_add(more.failed_here),
            times: times.collect(),
        }
    }

    /// The same, with every failure taken for one of the model.
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

    /// The time that this part of the computations is within, to a fifth; `None` when there were none.
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
