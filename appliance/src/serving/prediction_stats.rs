//! What a model has answered: how often each label came first, and how sure it was.

use std::collections::BTreeMap;
use std::time::Instant;

use cloud_sync::event::Score;

/// Steps of the histogram of confidence, each a tenth.
pub const CONFIDENCE_STEPS: usize = 10;

/// Answers since a moment.
#[derive(Clone, Debug)]
pub struct Sightings {
    /// That moment.
    pub since: Instant,
    /// How often each label came first.
    pub labels: BTreeMap<String, u64>,
    /// How often the first label's score was in each tenth.
    pub confidence: [u64; CONFIDENCE_STEPS],
}

impl Default for Sightings {
    fn default() -> Self {
        Self { since: Instant::now(), labels: BTreeMap::new(), confidence: [0; CONFIDENCE_STEPS] }
    }
}

impl Sightings {
    /// Counts an answer.
    pub fn note(&mut self, best: &Score) {
        match self.labels.get_mut(&best.label) {
            Some(count) => *count += 1,
            None => drop(self.labels.insert(best.label.clone(), 1)),
        }
        // Between 0 and 1.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let step = (best.score.clamp(0.0, 1.0) * 10.0) as usize;
        self.confidence[step.min(CONFIDENCE_STEPS - 1)] += 1;
    }

    /// These and later ones together.
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

    /// Answers.
    pub fn total(&self) -> u64 {
        self.confidence.iter().sum()
    }
}
