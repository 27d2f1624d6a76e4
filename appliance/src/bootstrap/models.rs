//! The models of a process at its start: the device, the endpoints with their first versions, and the context of rollouts.

use std::path::Path;
use std::sync::Arc;

use cloud_sync::registry::ModelReference;
use gpu_kernels::DecodeLimits;
use inference::bundle::{Bundle, ModelFile, find_bundle};
use inference::engine::{DeviceRequest, EngineError, Runtime, choose_device, load_runtime};
use inference::lanes::{LaneObserver, LaneSettings, Lanes, Stalls};

use super::{Links, StartError, models_dir};
use crate::config::{Config, ModelConfig};
use crate::http::{Role, ServerState};
use crate::models::{ModelStore, PullLimits};
use crate::rollout::{BootCandidate, Followed, Journal, RolloutContext, Settings, load_at_boot};
use crate::serving::{Endpoint, GpuPlan, LoadError, LoadedModel, ModelLoader, Models, cpu_lanes};

/// Images that a lane computes in one run of the engine while more are queued: with two the CPU needs a sixteenth less time per
/// image, with more no less, and an answer waits for one other image at most.
const IMAGES_A_RUN: usize = 2;
/// Images that a worker's lane computes in one run of the engine: with four the CPU needs a twelfth less time per image,
/// with eight no less than that.
const WORKER_IMAGES_A_RUN: usize = 4;

/// A bundle and the device that runs it, without a rollout: for `weir predict` and `weir doctor`.
pub struct DeviceSetup {
    /// Loads models.
    pub loader: ModelLoader,
    /// The verified bundle.
    pub bundle: Arc<Bundle>,
    /// The variant that runs.
    pub model: ModelFile,
}

impl DeviceSetup {
    /// Starts the model's lanes; `lanes` is for the CPU.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn start(&self, lanes: &LaneSettings, observer: Arc<dyn LaneObserver>) -> Result<Lanes, LoadError> {
        self.loader.start(&self.bundle, lanes, observer).map(|(_, lanes)| lanes)
    }
}

/// Loads the library and verifies the bundle, concurrently, and selects device and variant.
///
/// # Errors
/// [`StartError`] with the remedy.
pub fn prepare_device(config: &Config) -> Result<DeviceSetup, StartError> {
    let (loader, bundle) = std::thread::scope(|scope| {
        let bundle = scope.spawn(|| {
            let dir = find_bundle(config.model.bundle.as_deref())?;
            Bundle::open(&dir)
        });
        (model_loader(config), bundle.join())
    });
    let bundle = bundle.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let loader = loader?;
    let model = loader.variant(&bundle)?;
    Ok(DeviceSetup { loader, bundle: Arc::new(bundle), model })
}

/// Loads the library and selects the device.
fn model_loader(config: &Config) -> Result<ModelLoader, EngineError> {
    let request = device_request(config);
    let mut device = choose_device(&request)?;
    let runtime = device.load_runtime(&request)?;
    // Bodies are bounded before; a low http.max_body must not refuse golden cases.
    let max_bytes = config.http.max_body_bytes().max(DecodeLimits::default().max_bytes);
    let limits = config.image.limits(max_bytes);
    let gpu = GpuPlan::new(config, &device, limits, cpu_lanes(config));
    Ok(ModelLoader { runtime, device, limits, precision: config.engine.precision, gpu })
}

/// Loads the library as a daemon does, for work on the CPU.
///
/// # Errors
/// [`EngineError`] where there is no usable one.
pub fn load_library(config: &Config) -> Result<Runtime, EngineError> {
    load_runtime(&device_request(config))
}

/// The configured device.
fn device_request(config: &Config) -> DeviceRequest {
    DeviceRequest {
        kind: config.engine.device,
        gpus: config.engine.gpus.clone(),
        folders: config.engine.library_folders.clone(),
        onnxruntime: config.engine.onnxruntime.clone(),
    }
}

/// Loaded models, and what their rollouts need.
pub(super) struct Prepared {
    pub(super) models: Arc<Models>,
    pub(super) followed: Vec<Followed>,
    pub(super) context: RolloutContext,
}

/// Loads the first version of each model; blocking.
///
/// # Errors
/// When the default model has no usable version. Another model without one is not an error.
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
                tracing::error!(%error, model = followed.slot.name(), "model not served: no usable version");
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
            None => tracing::warn!(model = followed.slot.name(), "no version of this model is loaded yet"),
        }
    }
    let mut followed: Vec<Followed> = models.into_iter().map(|(followed, _)| followed).collect();
    followed.sort_by_key(|followed| !followed.is_default);
    let mut endpoints = followed.iter().map(|followed| Arc::clone(&followed.slot));
    let default = endpoints.next().ok_or(StartError::NoModel)?;
    let models = Arc::new(Models::new(default, endpoints.collect()));
    Ok(Prepared { models, followed, context })
}

struct Found {
    store: ModelStore,
    journal: Journal,
    models: Vec<(Followed, Option<Result<BootCandidate, LoadError>>)>,
}

/// The newest complete bundle of each model; blocking.
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

/// The name of the default model: the configured one, else the registered model that it follows, else that of its bundle.
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
        // There may be a version of the registry on disk.
        Err(_) if journal.entry(&name).serving.is_some() => None,
        Err(error) => return Err(error.into()),
    };
    Ok(followed)
}

fn followed(name: &str, model: &ModelConfig, is_default: bool) -> Followed {
    Followed {
        slot: Endpoint::new(name),
        follow: model.follow.parse().ok(),
        bundle: model.bundle.clone(),
        is_default,
    }
}

/// The lanes of each version; all share the scheduler of one device.
fn lanes(state: &ServerState, count: usize) -> LaneSettings {
    let config = state.config();
    let capacity = match config.engine.queue {
        0 => count * 8,
        queue => queue,
    };
    // A client waits for each real-time answer, and would wait for everything that the lane has started.
    let (together, urgent_together, background) = match state.role() {
        Role::Serve => (1, IMAGES_A_RUN, false),
        Role::Worker => (WORKER_IMAGES_A_RUN, 1, true),
    };
    LaneSettings {
        batch_size: together,
        realtime_batch_size: urgent_together,
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

/// Limits of a download. Its graphs are read with the library that this process has loaded: `engine.onnxruntime` is not its
/// path where the library was found in `engine.library_folders`.
pub fn pull_limits(config: &Config, runtime: &Runtime) -> PullLimits {
    PullLimits {
        max_bytes: config.registry.max_bundle.as_u64(),
        onnxruntime: Some(runtime.library().to_path_buf()),
        ..PullLimits::default()
    }
}

fn announce(context: &RolloutContext, name: &str, loaded: &LoadedModel) {
    let (model, lanes, device) = (&loaded.model, &loaded.lanes, &context.loader.device);
    context.metrics.serving(&loaded.labels(name, device.kind));
    tracing::info!(
        model = model.name,
        version = model.version,
        precision = %model.precision,
        device = %device.kind,
        reason = device.reason,
        lanes = lanes.count(),
        queue = lanes.capacity(),
        onnxruntime = %context.loader.runtime.library().display(),
        "model loaded, warmed and checked"
    );
}
