//! `[rollout]`: the steps and limits of the rollout of a new version.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{Check, within};

/// The steps of a rollout. With everything at 0 a new version serves as soon as its golden cases pass.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Images that the new version computes in the shadow of the current one before it answers any; 0 for none.
    pub shadow_images: u64,
    /// Minimum time in the shadow; 0s for none.
    #[serde(with = "humantime_serde")]
    pub shadow_time: Duration,
    /// Percentage of cameras that the new version answers as a canary; 0 for none.
    pub canary: f64,
    /// Minimum images as a canary.
    pub canary_images: u64,
    /// Minimum time as a canary.
    #[serde(with = "humantime_serde")]
    pub canary_time: Duration,
    /// Maximum time of shadow and canary, each; the evidence by then decides, and a version that has computed nothing stays on
    /// trial. 0s for no limit.
    #[serde(with = "humantime_serde")]
    pub max_trial_time: Duration,
    /// How long a promoted version is held against the same limits, and rolled back where it exceeds one; 0s for never.
    #[serde(with = "humantime_serde")]
    pub monitor_time: Duration,
    /// Maximum share of images on which the new version fails, 0 to 1.
    pub max_error_rate: f64,
    /// Maximum ratio of its computation time to the current version's, at the 95th percentile.
    pub max_latency_ratio: f64,
    /// Maximum share of images with another best label than the current version's, 0 to 1.
    pub max_disagreement: f64,
    /// How long the previous version stays loaded, so that a rollback takes no time.
    #[serde(with = "humantime_serde")]
    pub keep_previous_loaded: Duration,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            shadow_images: 0,
            shadow_time: Duration::ZERO,
            canary: 0.0,
            canary_images: 100,
            canary_time: Duration::from_secs(300),
            max_trial_time: Duration::from_secs(24 * 3600),
            monitor_time: Duration::from_secs(600),
            max_error_rate: 0.01,
            max_latency_ratio: 2.0,
            max_disagreement: 0.2,
            keep_previous_loaded: Duration::from_secs(600),
        }
    }
}

impl RolloutConfig {
    pub(super) fn validate(&self) -> Check {
        within("rollout.canary", self.canary, 0.0, 100.0)?;
        within("rollout.max_error_rate", self.max_error_rate, 0.0, 1.0)?;
        within("rollout.max_disagreement", self.max_disagreement, 0.0, 1.0)?;
        let ratio = self.max_latency_ratio;
        if !(ratio >= 1.0 && ratio.is_finite()) {
            return Err(("rollout.max_latency_ratio", format!("{ratio} is not 1 or more")));
        }
        Ok(())
    }
}
