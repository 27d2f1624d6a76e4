//! The start: verify the bundle, load, warm, run the golden cases. Only then is anything answered.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_sync::cache::{CacheConfig, ContentCache, EmbeddedCache};
use cloud_sync::capture::{Capture, CaptureError};
use cloud_sync::error::SyncError;
use cloud_sync::outbox::{Outbox, OutboxConfig, OutboxError, Recovery};
use cloud_sync::tls::CaFileError;
use cloud_sync::uplink::UplinkError;
use gpu_kernels::DecodeLimits;
use inference::bundle::{Bundle, BundleError, ModelFile, find_bundle};
use inference::engine::{DeviceRequest, EngineError, Runtime, choose_device, load_runtime};
use inference::lanes::{LaneObserver, LaneSettings, Lanes};
use tokio::runtime::Handle;

use super::background::{self, Around, Disk};
use super::{LinkError, Links, clients, models};
use crate::batch::spool::SpoolError;
use crate::config::Config;
use crate::http::{Role, ServerState, Services};
use crate::models::StoreError;
use crate::predict::{PredictService, PredictSettings, PredictionCache, SingleFlight};
use crate::rollout::{JournalError, Rollouts};
use crate::serving::{GpuPlan, LoadError, ModelLoader, Models, cpu_lanes};

/// Longest time for rollouts to end; a version that is being loaded is left to the process's end.
const ROLLOUT_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the appliance can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory can't be used.
    #[error("the data directory {} can't be used: {source}. Remedy: choose another with --data-dir or data_dir", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The outbox can't be opened.
    #[error("the outbox can't be opened: {0}")]
    Outbox(#[from] OutboxError),
    /// The bundle is refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The engine or the device is not usable.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A link can't be used as it is configured.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The certificates for fetches can't be used.
    #[error("fetch.ca_file: {0}. Remedy: name a PEM file of certificates, or leave the key out")]
    FetchCaFile(#[from] CaFileError),
    /// A store in the data directory can't be used.
    #[error("{}", .0.in_full())]
    Store(#[from] SyncError),
    /// The uplink can't be started.
    #[error("the uplink can't be started: {0}")]
    Uplink(#[from] UplinkError),
    /// The folder for captured images can't be used.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The folder for bodies can't be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A worker needs all three links.
    #[error(
        "weir worker needs Kafka, Redis and S3. Remedy: set kafka.bootstrap_servers, redis.host and s3.bucket"
    )]
    WorkerWithoutKafka,
    /// A worker has nothing else to do.
    #[error(
        "batch.enabled = false, and batches are all that weir worker works on. Remedy: set batch.enabled = true"
    )]
    WorkerWithoutBatches,
    /// The default model can't be served.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The folder of models can't be used.
    #[error(transparent)]
    Models(#[from] StoreError),
    /// The default model has no version.
    #[error(
        "the default model has no version. Remedy: name a bundle in `model.bundle` or WEIR__MODEL__BUNDLE"
    )]
    NoModel,
    /// What is known of rollouts can't be read.
    #[error("what is known of rollouts can't be used: {0}. Remedy: remove the file to begin anew")]
    Journal(#[from] JournalError),
}

/// What `weir predict` and `weir doctor` run: the configured bundle, without its rollout.
pub struct DeviceSetup {
    /// Loads models.
    pub loader: ModelLoader,
    /// The verified bundle.
    pub bundle: Arc<Bundle>,
    /// The variant that runs.
    pub model: ModelFile,
}

impl DeviceSetup {
    /// Starts the model's lanes, so many on the CPU.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn start(&self, lanes: &LaneSettings, observer: Arc<dyn LaneObserver>) -> Result<Lanes, LoadError> {
        self.loader.start(&self.bundle, lanes, observer).map(|(_, lanes)| lanes)
    }
}

/// Loads the library and verifies the bundle, at the same time, and picks device and variant.
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

/// Loads the library and picks the device.
pub(super) fn model_loader(config: &Config) -> Result<ModelLoader, EngineError> {
    let request = device_request(config);
    let mut device = choose_device(&request)?;
    let runtime = device.load_runtime(&request)?;
    // Bodies are bounded before they get here; a low http.max_body must not refuse the golden cases.
    let max_bytes = config.http.max_body_bytes().max(DecodeLimits::default().max_bytes);
    let limits = config.image.limits(max_bytes);
    let gpu = GpuPlan::new(config, &device, limits, cpu_lanes(config));
    Ok(ModelLoader { runtime, device, limits, precision: config.engine.precision, gpu })
}

/// Loads the library that a daemon loads, for work on the CPU.
///
/// # Errors
/// [`EngineError`] where there is none that can be used.
pub fn load_library(config: &Config) -> Result<Runtime, EngineError> {
    load_runtime(&device_request(config))
}

/// What the configuration says of the device.
fn device_request(config: &Config) -> DeviceRequest {
    DeviceRequest {
        kind: config.engine.device,
        gpus: config.engine.gpus.clone(),
        folders: config.engine.library_folders.clone(),
        onnxruntime: config.engine.onnxruntime.clone(),
    }
}

/// Starts everything behind the HTTP server; blocking, on a thread of the runtime.
///
/// # Errors
/// [`StartError`]; what had been started by then is dropped.
pub(super) fn start(state: &ServerState) -> Result<Services, StartError> {
    let config = state.config();
    if state.role() == Role::Worker && !config.batch.enabled {
        return Err(StartError::WorkerWithoutBatches);
    }
    state.fetcher().check_ca_file()?;
    let admin_token = clients::admin_token(config)?;
    let links = Links::open(config, &Handle::current())?;
    make_data_dir(config)?;
    let (opened, prepared) = std::thread::scope(|scope| {
        let outbox = scope.spawn(|| match state.role() {
            Role::Serve => open_outbox(config).map(|outbox| Some(Arc::new(outbox))),
            Role::Worker => Ok(None),
        });
        let prepared = models::prepare(state, &links);
        (outbox.join(), prepared)
    });
    let outbox = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let mut prepared = prepared?;
    prepared.context.outbox.clone_from(&outbox);
    let limits = prepared.context.loader.limits;
    let device = prepared.context.loader.device.clone();
    let models = prepared.models;
    let disk = Disk::new(config);
    let capture = background::open_capture(config, &links, &disk)?;
    let around = Around {
        state,
        limits,
        models: &models,
        outbox: outbox.as_ref(),
        disk: &disk,
        capture: capture.clone(),
    };
    let (background, batches) = background::start(&links, &around)?;
    let predictions =
        outbox.map(|outbox| prediction_service(state, &links, limits, &models, outbox, capture));
    let runtime = Handle::current();
    let _runtime = runtime.enter();
    let rollouts = Rollouts::start(prepared.context, prepared.followed);
    Ok(Services { models, rollouts, admin_token, predictions, batches, background, device })
}

fn prediction_service(
    state: &ServerState,
    links: &Links,
    limits: DecodeLimits,
    models: &Arc<Models>,
    outbox: Arc<Outbox>,
    capture: Option<Arc<Capture>>,
) -> PredictService {
    let config = state.config();
    let local = EmbeddedCache::new(CacheConfig { max_bytes: config.cache.max_bytes.as_u64() });
    let cache = match &links.redis {
        Some(redis) => {
            let store = Arc::clone(&redis.of) as Arc<dyn ContentCache>;
            PredictionCache::shared(local, store, config.redis.cache_timeout)
        }
        None => PredictionCache::local(local),
    };
    PredictService {
        models: Arc::clone(models),
        cache,
        outbox,
        capture,
        metrics: Arc::clone(state.metrics()),
        settings: PredictSettings {
            node: config.node.name.clone(),
            cache_ttl: config.cache.enabled.then_some(config.cache.ttl),
            limits,
        },
        flights: SingleFlight::default(),
    }
}

/// Ends rollouts, batch work and what sends and captures. What is unfinished is taken up by the next start, or by
/// others.
pub(super) async fn end_background(services: &Services, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    // What follows must have the most of the time.
    services.rollouts.end((left / 4).min(ROLLOUT_STOP_TIMEOUT)).await;
    services.background.end(deadline).await;
}

/// Ends lanes and outbox; blocking. Lanes that were not drained are left to end with the process.
///
/// # Errors
/// [`OutboxError`] where what was acknowledged last could not be flushed.
pub(super) fn end_service(services: &Services, drained: bool) -> Result<(), OutboxError> {
    if drained {
        services.models.stop();
    }
    services.predictions.as_ref().map_or(Ok(()), |predictions| predictions.outbox.close())
}

/// Makes a folder that only this user may look into; one that is there stays as it is.
pub fn create_private(dir: &Path) -> std::io::Result<()> {
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        made => made,
    }
}

/// Whether other users may look into a folder.
pub fn is_open_to_others(dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

fn make_data_dir(config: &Config) -> Result<(), StartError> {
    let dir = &config.data_dir;
    create_private(dir).map_err(|source| StartError::DataDir { path: dir.clone(), source })?;
    // It may be a folder that others have a share in, so that its mode is for the operator to change.
    if is_open_to_others(dir) {
        tracing::warn!(
            data_dir = %dir.display(),
            "other users of this machine may look into the data directory. Remedy: chmod 700"
        );
    }
    Ok(())
}

/// Opens the outbox in the data directory.
fn open_outbox(config: &Config) -> Result<Outbox, StartError> {
    let (outbox, recovery) = Outbox::open(outbox_config(config))?;
    report(&recovery);
    Ok(outbox)
}

fn outbox_config(config: &Config) -> OutboxConfig {
    OutboxConfig {
        max_bytes: config.outbox.max_bytes.as_u64(),
        max_age: config.outbox.max_age,
        segment_bytes: config.outbox.segment.as_u64(),
        when_full: config.outbox.when_full,
        bulk_share: config.outbox.batch_share,
        durability: config.outbox.durability,
        reserve: config.outbox.reserve,
        has_consumer: config.kafka.publish_events && !config.kafka.bootstrap_servers.is_empty(),
        ..OutboxConfig::new(outbox_dir(&config.data_dir))
    }
}

/// Where the outbox lies in a data directory.
pub fn outbox_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("outbox")
}

/// Where models lie in a data directory.
pub fn models_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("models")
}

fn report(recovery: &Recovery) {
    if recovery.truncated_bytes > 0 {
        tracing::warn!(
            bytes = recovery.truncated_bytes,
            "the outbox ended within an event that was never acknowledged; its torn tail was cut off"
        );
    }
    if let Some(reason) = recovery.lost_end {
        tracing::error!(?reason, "the outbox has lost its newest events, or may have");
    }
    for damage in &recovery.damaged {
        let path = damage.path.display();
        tracing::error!(%path, offset = damage.offset, bytes = damage.bytes, "part of the outbox can't be read");
    }
    tracing::info!(events = recovery.events, segments = recovery.segments, "outbox open");
}
