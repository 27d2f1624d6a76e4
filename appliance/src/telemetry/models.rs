//! Metrics by model and version.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::labels::ModelLabels;

/// Versions per model with metrics; those of older versions are removed.
const VERSIONS: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    model: String,
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabels {
    model: String,
    state: String,
}

pub(super) struct ModelMetrics {
    info: Family<ModelLabels, Gauge>,
    predictions: Family<VersionLabels, Counter>,
    failures: Family<VersionLabels, Counter>,
    compute: Family<VersionLabels, Histogram, fn() -> Histogram>,
    changes: Family<ChangeLabels, Counter>,
    shown: Mutex<BTreeMap<String, Shown>>,
}

#[derive(Default)]
struct Shown {
    info: Option<ModelLabels>,
    versions: VecDeque<String>,
}

impl ModelMetrics {
    pub(super) fn new() -> Self {
        // 0.1 ms to 3 s.
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        let compute = Family::new_with_constructor(buckets);
        Self {
            info: Family::default(),
            predictions: Family::default(),
            failures: Family::default(),
            compute,
            changes: Family::default(),
            shown: Mutex::default(),
        }
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register("model_info", "The models that serve; always 1", self.info.clone());
        r.register("model_predictions", "Predictions acknowledged, by version", self.predictions.clone());
        r.register(
            "model_failures",
            "Images that a version failed on for no fault of theirs",
            self.failures.clone(),
        );
        r.register_with_unit(
            "model_compute",
            "Time of a lane for an image, by version",
            Unit::Seconds,
            self.compute.clone(),
        );
        r.register(
            "model_changes",
            "Versions that came to serve, were rejected or rolled back",
            self.changes.clone(),
        );
    }

    /// Sets the current version of a model.
    pub(super) fn serving(&self, labels: &ModelLabels) {
        let mut shown = self.shown.lock();
        let shown = shown.entry(labels.model.clone()).or_default();
        if let Some(before) = shown.info.replace(labels.clone()) {
            self.info.remove(&before);
        }
        self.info.get_or_create(labels).set(1);
        self.show(&labels.model, shown, &labels.version);
    }

    /// Adds the version on trial of `model`.
    pub(super) fn on_trial(&self, model: &str, version: &str) {
        let mut shown = self.shown.lock();
        self.show(model, shown.entry(model.to_owned()).or_default(), version);
    }

    fn show(&self, model: &str, shown: &mut Shown, version: &str) {
        shown.versions.retain(|known| known != version);
        shown.versions.push_back(version.to_owned());
        let serving = shown.info.as_ref().map(|info| info.version.clone());
        while shown.versions.len() > VERSIONS {
            let Some(oldest) = shown.versions.iter().position(|known| Some(known) != serving.as_ref()) else {
                return;
            };
            let Some(version) = shown.versions.remove(oldest) else { return };
            let old = VersionLabels { model: model.to_owned(), version };
            self.predictions.remove(&old);
            self.failures.remove(&old);
            self.compute.remove(&old);
        }
    }

    pub(super) fn prediction(&self, model: &str, version: &str) {
        self.predictions.get_or_create(&labels(model, version)).inc();
    }

    pub(super) fn computed(&self, model: &str, version: &str, busy: Duration) {
        self.compute.get_or_create(&labels(model, version)).observe(busy.as_secs_f64());
    }

    pub(super) fn failure(&self, model: &str, version: &str) {
        self.failures.get_or_create(&labels(model, version)).inc();
    }

    pub(super) fn change(&self, model: &str, state: &str) {
        self.changes.get_or_create(&ChangeLabels { model: model.to_owned(), state: state.to_owned() }).inc();
    }
}

fn labels(model: &str, version: &str) -> VersionLabels {
    VersionLabels { model: model.to_owned(), version: version.to_owned() }
}
