//! One loaded version of a model: its identity, the lanes that compute it, its statistics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cloud_sync::event::{ModelRef, Score};
use inference::bundle::{Bundle, ModelFile, Precision};
use inference::engine::DeviceKind;
use inference::lanes::{Lanes, StageTimings};

use super::VersionStats;
use crate::models::Origin;
use crate::telemetry::ModelLabels;

/// The identity of a version, as answers, events and cache keys need it.
#[derive(Clone, Debug)]
pub struct ServingModel {
    /// Model name.
    pub name: String,
    /// Model version.
    pub version: String,
    /// Hex SHA-256 of the model file.
    pub digest: String,
    /// Labels in output order.
    pub labels: Vec<String>,
    /// Arithmetic of the variant.
    pub precision: Precision,
    key: [u8; 32],
}

impl ServingModel {
    /// The identity of `model` in `bundle`.
    pub fn new(bundle: &Bundle, model: &ModelFile) -> Self {
        let manifest = bundle.manifest();
        // The bundle's digest covers labels and preprocessing, the model file's digest the arithmetic: together all
        // parameters of the computation.
        let key = blake3::Hasher::new()
            .update(bundle.digest().as_bytes())
            .update(model.sha256.as_bytes())
            .finalize();
        Self {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            digest: model.sha256.clone(),
            labels: manifest.labels.clone(),
            precision: model.precision,
            key: *key.as_bytes(),
        }
    }

    /// Key in the content cache: image, version and parameters.
    pub fn cache_key(&self, image: &blake3::Hash) -> [u8; 32] {
        *blake3::keyed_hash(&self.key, image.as_bytes()).as_bytes()
    }

    /// The model as events name it.
    pub fn event_ref(&self) -> ModelRef {
        ModelRef { name: self.name.clone(), version: self.version.clone(), digest: self.digest.clone() }
    }

    /// The `top_k` best labels, best first; equal scores keep the labels' order.
    pub fn best(&self, scores: &[f32], top_k: usize) -> Vec<Score> {
        let mut order: Vec<usize> = (0..scores.len().min(self.labels.len())).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(top_k.max(1));
        order.into_iter().map(|i| Score { label: self.labels[i].clone(), score: scores[i] }).collect()
    }
}

/// A version that is loaded, warmed up and checked.
pub struct LoadedModel {
    /// Its identity.
    pub model: ServingModel,
    /// Its lanes.
    pub lanes: Lanes,
    /// The verified bundle.
    pub bundle: Arc<Bundle>,
    /// The version in the registry; `None` for a bundle that the configuration names.
    pub origin: Option<Origin>,
    /// Computations and failures since it was loaded.
    pub stats: VersionStats,
    mean_busy_us: AtomicU64,
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "LoadedModel({} {}, {})", self.model.name, self.model.version, self.describe())
    }
}

impl LoadedModel {
    /// Its labels in metrics, as the version of `model` that serves on `device`.
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
        Self { model, lanes, bundle, origin, stats: VersionStats::default(), mean_busy_us: AtomicU64::new(0) }
    }

    /// For logs and events: `fish-classifier/3`, or `bundle`.
    pub fn describe(&self) -> String {
        self.origin.as_ref().map_or_else(|| "bundle".to_owned(), |o| format!("{}/{}", o.name, o.version))
    }

    /// Counts a computed image and updates the moving average of the time per image.
    pub(super) fn computed(&self, timings: StageTimings) {
        self.stats.computed(timings.sum());
        let new = u64::try_from(timings.sum().as_micros()).unwrap_or(u64::MAX);
        let old = self.mean_busy_us.load(Ordering::Relaxed);
        let mean = if old == 0 { new } else { old - old / 16 + new / 16 };
        self.mean_busy_us.store(mean, Ordering::Relaxed);
    }

    /// Estimated time until a queue that is full now is empty.
    pub fn queue_time(&self) -> Duration {
        let mean = Duration::from_micros(self.mean_busy_us.load(Ordering::Relaxed).max(1000));
        let rounds = self.lanes.capacity().div_ceil(self.lanes.at_once());
        mean * u32::try_from(rounds).unwrap_or(u32::MAX)
    }
}
