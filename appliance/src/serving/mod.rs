//! Models that are served, by name, and the one path by which images are classified. `rollout` loads and swaps versions.
//!
//! Invariants:
//! - A request holds its version until it is answered; a version's lanes stop only when no request holds it.
//! - A failure of a candidate never reaches a client: the current version answers.
//! - All versions of all models share the device's scheduler.

mod classifier;
mod endpoint;
mod error;
mod gpu;
mod loader;
mod stats;
#[cfg(test)]
mod tests;
mod version;

use std::sync::Arc;

pub use classifier::{
    Classification, Classifier, Computed, ImageRequest, Outcome, OutcomeCache, Priority, Run, Uncached,
};
pub use endpoint::{Comparison, Endpoint, Trial, TrialKind};
pub use error::ClassificationError;
pub use gpu::GpuPlan;
pub use loader::{DRAIN_TIMEOUT, LoadError, ModelLoader, check_golden, cpu_lanes};
pub use stats::{PredictionStats, VersionCounts, VersionStats};
pub use version::{LoadedModel, ServingModel};

/// The models that this process serves, by name; the first is the default.
#[derive(Debug)]
pub struct Models {
    endpoints: Vec<Arc<Endpoint>>,
}

impl Models {
    /// These models, `default` first.
    pub fn new(default: Arc<Endpoint>, others: Vec<Arc<Endpoint>>) -> Self {
        let mut endpoints = vec![default];
        endpoints.extend(others);
        Self { endpoints }
    }

    /// The model of requests that name none.
    pub fn default(&self) -> &Arc<Endpoint> {
        &self.endpoints[0]
    }

    /// The model of this name: an endpoint's own name takes precedence over the name in its current bundle.
    pub fn get(&self, name: &str) -> Option<&Arc<Endpoint>> {
        let own = self.endpoints.iter().find(|endpoint| endpoint.name() == name);
        own.or_else(|| {
            let serves =
                |endpoint: &&Arc<Endpoint>| endpoint.current().is_some_and(|model| model.model.name == name);
            self.endpoints.iter().find(serves)
        })
    }

    /// All of them, the default first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.iter()
    }

    /// Their names, separated by commas.
    pub fn names(&self) -> String {
        self.endpoints.iter().map(|endpoint| endpoint.name()).collect::<Vec<_>>().join(", ")
    }

    /// Stops the lanes of all loaded versions, once the queued images are answered; blocking.
    pub fn stop(&self) {
        for endpoint in &self.endpoints {
            let versions = endpoint.routes();
            let trial = versions.trial.as_ref().map(|trial| &trial.model);
            for model in [versions.current.as_ref(), trial, versions.standby.as_ref()].into_iter().flatten() {
                model.lanes.stop();
            }
        }
    }
}
