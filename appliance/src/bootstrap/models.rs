//! The models of a process at its start: their slots, the versions that they begin with, and what their rollouts need.

use std::path::Path;
use std::sync::Arc;

use cloud_sync::registry::ModelReference;
use inference::bundle::find_bundle;
use inference::engine::Runtime;
use inference::lanes::{LaneSettings, Stalls};

use super::start::model_loader;
use super::{Links, StartError, models_dir};
use crate::config::{Config, ModelConfig};
use crate::http::{Role, ServerState};
use crate::models::{ModelStore, PullLimits};
use crate::rollout::{BootCandidate, Followed, Journal, RolloutContext, Settings, load_at_boot};
use crate::serving::{LoadedModel, Models, Slot, cpu_lanes};

/// Images that a lane computes in one run of the engine while more wait: with two the CPU needs a sixteenth less time an
/// image, with more no less, and an answer waits for one other at most.
const IMAGES_A_RUN: usize = 2;
/// Images that a worker's lane computes in one run of the engine: with four the CPU needs a twelfth less time an image,
/// with eight no less than that.
const WORKER_IMAGES_A_RUN: usize = 4;

/// Models that are loaded, and what brings newer versions of them.
pub(super) struct Prepared {
    pub(super) models: Arc<Models>,
    pub(super) followed: Vec<Followed>,
    pub(super) context: RolloutContext,
}

/// Loads the version that each model begins with; blocking.
///
/// # Errors
/// When the default model has none that can be served. That another has none yet is no error.
pub(super) fn prepare(state: &ServerState, links: &Links) -> Result<Prepared, StartError> {
    let config = state.config();
    let (found, loader) = std::thread::scope(|scope| {
        let found = scope.spawn(|| find(config));
        (found.join(), model_loader(config))
    });
    let Found { store, journal, mut models } =
        found.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let loader = loader?;
    let context = RolloutContext {
        registry: links.registry(config)?,
        lanes: lanes(state, cpu_lanes(config)),
        store,
        journal,
        settings: settings(config, &loader.runtime),
        loader,
        metrics: Arc::clone(state.metrics()),
        outbox: None,
    };
    for (followed, begun) in &mut models {
        let is_default = followed.is_default;
        let loaded = match load_at_boot(&context, followed, begun.take()) {
            Ok(loaded) => loaded,
            Err(error) if is_default => return Err(error.into()),
            Err(error) => {
                tracing::error!(%error, model = followed.slot.name(), "this model is not served until a version of it is");
                None
            }
        };
        match loaded {
            Some(model) => {
                announce(&context, followed.slot.name(), &model);
                followed.slot.change(|routes| routes.current = Some(model));
            }
            None if is_default => {
                return Err(find_bundle(None).err().map_or(StartError::NoModel, StartError::from));
            }
            None => tracing::warn!(model = followed.slot.name(), "no version of this model is here yet"),
        }
    }
    let mut followed: Vec<Followed> = models.into_iter().map(|(followed, _)| followed).collect();
    followed.sort_by_key(|followed| !followed.is_default);
    let mut slots = followed.iter().map(|followed| Arc::clone(&followed.slot));
    let default = slots.next().ok_or(StartError::NoModel)?;
    let models = Arc::new(Models::new(default, slots.collect()));
    Ok(Prepared { models, followed, context })
}

struct Found {
    store: ModelStore,
    journal: Journal,
    models: Vec<(Followed, Option<Result<BootCandidate, crate::serving::LoadError>>)>,
}

/// The newest whole bundle of each model; blocking.
fn find(config: &Config) -> Result<Found, StartError> {
    let store = ModelStore::open(&models_dir(&config.data_dir))?;
    let journal = Journal::open(&models_dir(&config.data_dir))?;
    let default = followed_default(config, &journal)?;
    let others = config.models.iter().map(|(name, model)| followed(name, model, false));
    let all = std::iter::once(default).chain(others);
    let models = all
        .map(|followed| {
            let begun = BootCandidate::find(&followed, &store, &journal);
            (followed, begun)
        })
        .collect();
    Ok(Found { store, journal, models })
}

/// The name of the default model: as configured, or as what it follows, or as its bundle's manifest says.
pub fn default_name(config: &Config, bundle: Option<&Path>) -> String {
    let manifest = || inference::bundle::Manifest::read(bundle?).ok().map(|manifest| manifest.name);
    let follow = config.model.follow.parse::<ModelReference>().ok().map(|follow| follow.name);
    let own = Some(config.model.name.clone()).filter(|name| !name.is_empty());
    own.or(follow).or_else(manifest).unwrap_or_else(|| "default".to_owned())
}

/// The default model.
fn followed_default(config: &Config, journal: &Journal) -> Result<Followed, StartError> {
    let bundle = find_bundle(config.model.bundle.as_deref());
    let name = default_name(config, bundle.as_deref().ok());
    let mut followed = followed(&name, &config.model, true);
    followed.bundle = match bundle {
        Ok(dir) => Some(dir),
        // A version of the registry may be here already.
        Err(_) if journal.entry(&name).serving.is_some() => None,
        Err(error) => return Err(error.into()),
    };
    Ok(followed)
}

fn followed(name: &str, model: &ModelConfig, is_default: bool) -> Followed {
    Followed {
        slot: Slot::new(name),
        follow: model.follow.parse().ok(),
        bundle: model.bundle.clone(),
        is_default,
    }
}

/// The lanes that each version gets; all share the turns of one device.
fn lanes(state: &ServerState, count: usize) -> LaneSettings {
    let config = state.config();
    let capacity = match config.engine.queue {
        0 => count * 8,
        queue => queue,
    };
    // Somebody waits for each real-time answer, and would wait for all that the lane has begun.
    let (together, urgent_together, background) = match state.role() {
        Role::Serve => (1, IMAGES_A_RUN, false),
        Role::Worker => (WORKER_IMAGES_A_RUN, 1, true),
    };
    LaneSettings {
        together,
        urgent_together,
        background,
        memory: Arc::clone(state.decode_memory()),
        stalls: Stalls::new(config.engine.stall_timeout, count),
        ..LaneSettings::new(count, capacity)
    }
}

fn settings(config: &Config, runtime: &Runtime) -> Settings {
    let registry = &config.registry;
    Settings {
        node: config.node.name.clone(),
        rollout: config.rollout.clone(),
        monitoring: config.monitoring.clone(),
        poll_interval: registry.poll_interval,
        retain_versions: registry.retain_versions,
        tag: registry.tag,
        pull: pull_limits(config, runtime),
    }
}

/// Bounds of a download, whose graphs are read with the library that this process has loaded: `engine.onnxruntime`
/// does not say where that is when it was found in `engine.library_folders`.
pub fn pull_limits(config: &Config, runtime: &Runtime) -> PullLimits {
    PullLimits {
        max_bytes: config.registry.max_bundle.as_u64(),
        onnxruntime: Some(runtime.library().to_path_buf()),
        ..PullLimits::default()
    }
}

fn announce(around: &RolloutContext, name: &str, loaded: &LoadedModel) {
    let (model, lanes, device) = (&loaded.model, &loaded.lanes, &around.loader.device);
    around.metrics.serving(&loaded.labels(name, device.kind));
    tracing::info!(
        model = model.name,
        version = model.version,
        precision = %model.precision,
        device = %device.kind,
        reason = device.reason,
        lanes = lanes.count(),
        queue = lanes.capacity(),
        onnxruntime = %around.loader.runtime.library().display(),
        "model loaded, warmed and checked"
    );
}
