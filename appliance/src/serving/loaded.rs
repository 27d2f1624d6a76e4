//! One version of a model, loaded: what it is, where it is from, the lanes that compute it, what it has done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use inference::bundle::Bundle;
use inference::engine::DeviceKind;
use inference::lanes::{Lanes, StageTimings};

use super::{ServingModel, Tally};
use crate::models::Origin;
use crate::telemetry::ModelLabels;

/// A version that is loaded, warmed and checked.
pub struct LoadedModel {
    /// What answers, events and cache keys call it.
    pub model: ServingModel,
    /// Its lanes.
    pub lanes: Lanes,
    /// The verified bundle.
    pub bundle: Arc<Bundle>,
    /// Which registered version it is; none for a folder that the configuration names.
    pub origin: Option<Origin>,
    /// What it has done since it was loaded.
    pub tally: Tally,
    mean_busy_us: AtomicU64,
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "LoadedModel({} {}, {})", self.model.name, self.model.version, self.describe())
    }
}

impl LoadedModel {
    /// What metrics call it, as the version of the model called `model` that serves on this device.
    pub fn labels(&self, model: &str, device: DeviceKind) -> ModelLabels {
        let identity = &self.model;
        ModelLabels {
            model: model.to_owned(),
            name: identity.name.clone(),
            version: identity.version.clone(),
            digest: identity.digest.clone(),
            precision: identity.precision.to_string(),
            device: device.to_string(),
        }
    }

    /// A model on its lanes.
    pub fn new(model: ServingModel, lanes: Lanes, bundle: Arc<Bundle>, origin: Option<Origin>) -> Self {
        Self { model, lanes, bundle, origin, tally: Tally::default(), mean_busy_us: AtomicU64::new(0) }
    }

    /// For people and events: `fish-classifier/3`, or `bundle`.
    pub fn describe(&self) -> String {
        self.origin.as_ref().map_or_else(|| "bundle".to_owned(), |o| format!("{}/{}", o.name, o.version))
    }

    /// Learns how long an image takes a lane.
    pub fn learn(&self, timings: StageTimings) {
        self.tally.computed(timings.sum());
        let new = u64::try_from(timings.sum().as_micros()).unwrap_or(u64::MAX);
        let old = self.mean_busy_us.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { old - old / 16 + new / 16 };
        self.mean_busy_us.store(mean, Ordering::Relaxed);
    }

    /// When a queue that is full now will have been worked off.
    pub fn queue_time(&self) -> Duration {
        let mean = Duration::from_micros(self.mean_busy_us.load(Ordering::Relaxed).max(1000));
        let rounds = self.lanes.capacity().div_ceil(self.lanes.at_once());
        mean * u32::try_from(rounds).unwrap_or(u32::MAX)
    }
}
