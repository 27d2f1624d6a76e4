//! Loaded models by name: which version answers, which one is on trial beside it. Who loads and swaps them is `rollout`.
//!
//! Invariants:
//! - A request holds the version that it was given until it is answered; a version's lanes end only when nobody holds it.
//! - What a version on trial does wrong is never a client's answer: the request goes to the one that serves.
//! - All versions of all models share the turns of one device.

mod endpoint;
mod gpu;
mod loaded;
mod loader;
mod model;
mod prediction_stats;
#[cfg(test)]
mod tests;
mod version_stats;

use std::sync::Arc;

pub use endpoint::{ActiveVersions, Chosen, Comparison, Other, Slot, Trial, TrialKind};
pub use gpu::GpuPlan;
pub use loaded::LoadedModel;
pub use loader::{DRAIN_TIMEOUT, LoadError, ModelLoader, check_golden, cpu_lanes};
pub use model::ServingModel;
pub use prediction_stats::{CONFIDENCE_STEPS, Sightings};
pub use version_stats::{Tally, TallyReading};

/// The models that this process serves, by name; the first is the one that is meant when a request names none.
#[derive(Debug)]
pub struct Models {
    slots: Vec<Arc<Slot>>,
}

impl Models {
    /// These models; `default` first.
    pub fn new(default: Arc<Slot>, others: Vec<Arc<Slot>>) -> Self {
        let mut slots = vec![default];
        slots.extend(others);
        Self { slots }
    }

    /// The model that is meant when a request names none.
    pub fn default(&self) -> &Arc<Slot> {
        &self.slots[0]
    }

    /// The model of this name. Its own name counts first, then the name in the bundle that serves.
    pub fn get(&self, name: &str) -> Option<&Arc<Slot>> {
        let own = self.slots.iter().find(|slot| slot.name() == name);
        own.or_else(|| {
            let serves = |slot: &&Arc<Slot>| slot.current().is_some_and(|model| model.model.name == name);
            self.slots.iter().find(serves)
        })
    }

    /// All of them, the default first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.slots.iter()
    }

    /// Their names, for a person.
    pub fn names(&self) -> String {
        self.slots.iter().map(|slot| slot.name()).collect::<Vec<_>>().join(", ")
    }

    /// Ends the lanes of all that are loaded, once those who wait in them are answered; blocking.
    pub fn stop(&self) {
        for slot in &self.slots {
            let routes = slot.routes();
            let trial = routes.trial.as_ref().map(|trial| &trial.model);
            for model in [routes.current.as_ref(), trial, routes.standby.as_ref()].into_iter().flatten() {
                model.lanes.stop();
            }
        }
    }
}
