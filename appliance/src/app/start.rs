//! The start: verify the bundle, load, warm, run the golden cases. Only then is anything answered.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use cloud_sync::capture::{Capture, CaptureError};
use cloud_sync::error::SyncError;
use cloud_sync::outbox::{Outbox, OutboxConfig, OutboxError, Recovery};
use cloud_sync::state::{EmbeddedState, StateConfig, StateStore};
use cloud_sync::uplink::UplinkError;
use gpu_kernels::DecodeLimits;
use tokio::runtime::Handle;

use super::cloud::{self, Around, Disk};
use super::{App, Engine, LinkError, Links, Role};
use crate::batch::spool::SpoolError;
use crate::config::Config;
use crate::engine::{DeviceChoice, EngineError, Runtime, choose_device};
use crate::lanes::cpu::CpuPipeline;
use crate::lanes::{DeviceFactory, Lanes};
use crate::models::{Bundle, BundleError, DeviceTag, ModelFile, find_bundle};
use crate::predict::{ContentCache, Flights, PredictService, PredictSettings, ServingModel};
use crate::telemetry::ModelLabels;

const GOLDEN_TIME: Duration = Duration::from_secs(60);

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
    /// A golden case came out wrong.
    #[error(
        "golden case {file}: {reason}. The model does not compute what its bundle promises, so it is not served"
    )]
    Golden {
        /// The case.
        file: String,
        /// What came out.
        reason: String,
    },
}

/// Images that a worker's lane computes in one run of the engine: with four the CPU needs a twelfth less time an image,
/// with eight no less than that.
const WORKER_IMAGES_A_RUN: usize = 4;

/// Everything that is needed to build a lane's device.
pub struct DeviceSetup {
    /// The loaded library.
    pub runtime: Runtime,
    /// The verified bundle.
    pub bundle: Arc<Bundle>,
    /// The variant that runs.
    pub model: ModelFile,
    /// The device that was chosen.
    pub device: DeviceChoice,
    /// Bounds on images.
    pub limits: DecodeLimits,
}

impl DeviceSetup {
    /// Builds the device of a lane.
    pub fn factory(&self) -> DeviceFactory {
        self.factory_of(1)
    }

    /// As [`DeviceSetup::factory`], for devices that compute so many images in one run where they can.
    pub fn factory_of(&self, images: usize) -> DeviceFactory {
        let (runtime, bundle) = (self.runtime.clone(), Arc::clone(&self.bundle));
        let (model, limits) = (self.model.clone(), self.limits);
        Arc::new(move |_| Ok(Box::new(CpuPipeline::new(&runtime, &bundle, &model, limits, images)?)))
    }

    /// Lanes on this device: as configured, or one a core.
    pub fn lanes(&self, config: &Config) -> usize {
        match config.engine.lanes {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            lanes => lanes,
        }
    }
}

/// Loads the library and verifies the bundle, at the same time, and picks device and variant.
///
/// # Errors
/// [`StartError`] with the remedy.
pub fn prepare_device(config: &Config) -> Result<DeviceSetup, StartError> {
    let device = choose_device(config.engine.device)?;
    let (bundle, runtime) = std::thread::scope(|scope| {
        let bundle = scope.spawn(|| {
            let dir = find_bundle(config.model.bundle.as_deref())?;
            Bundle::open(&dir)
        });
        let runtime = Runtime::load(config.engine.onnxruntime.as_deref());
        (bundle.join(), runtime)
    });
    let bundle = bundle.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let model = bundle.variant(DeviceTag::Cpu, config.engine.precision)?;
    let limits = DecodeLimits {
        // Bodies are bounded before they get here; a low http.max_body must not refuse the golden cases.
        max_bytes: config.http.max_body_bytes().max(DecodeLimits::default().max_bytes),
        max_pixels: config.image.max_pixels,
        max_scans: config.image.max_scans,
    };
    Ok(DeviceSetup { runtime: runtime?, bundle: Arc::new(bundle), model, device, limits })
}

/// Runs every golden case of the bundle through the lanes.
///
/// # Errors
/// [`StartError::Golden`] for the first that comes out wrong.
pub fn check_golden(bundle: &Bundle, lanes: &Lanes) -> Result<(), StartError> {
    for case in bundle.golden_cases()? {
        let wrong = |reason: String| StartError::Golden { file: case.file.clone(), reason };
        let submitted = lanes.submit(case.bytes.clone().into(), Instant::now() + GOLDEN_TIME);
        let answer = submitted.map_err(|e| wrong(e.to_string()))?.blocking_recv();
        let (classified, _) =
            answer.map_err(|_| wrong("the lane ended".into()))?.map_err(|e| wrong(e.to_string()))?;
        let labels = &bundle.manifest().labels;
        let best = (0..classified.scores.len())
            .max_by(|&a, &b| classified.scores[a].total_cmp(&classified.scores[b]));
        let score = classified.scores.get(case.label).copied().unwrap_or(0.0);
        if best != Some(case.label) || score < case.min_score {
            return Err(wrong(format!(
                "expected {} with at least {}, got {} and a score of {score} for {}",
                labels[case.label],
                case.min_score,
                best.map_or("nothing", |i| labels[i].as_str()),
                labels[case.label]
            )));
        }
    }
    Ok(())
}

impl App {
    /// Starts everything behind the HTTP server; blocking, on a thread of the runtime. When it returns Ok the daemon is
    /// ready.
    pub(super) fn start(&self) -> Result<(), StartError> {
        let config = self.config();
        if self.role() == Role::Worker && !config.batch.enabled {
            return Err(StartError::WorkerWithoutBatches);
        }
        let links = Links::open(config, &Handle::current())?;
        let (opened, prepared) = std::thread::scope(|scope| {
            let outbox = scope.spawn(|| match self.role() {
                Role::Serve => open_outbox(config).map(|outbox| Some(Arc::new(outbox))),
                Role::Worker => make_data_dir(config).map(|()| None),
            });
            let prepared = self.start_lanes();
            (outbox.join(), prepared)
        });
        let outbox = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (setup, lanes) = prepared?;
        let engine = Engine { model: ServingModel::new(&setup.bundle, &setup.model), lanes: Arc::new(lanes) };
        self.announce(&setup, &engine);
        let disk = Disk::new(config);
        let capture = cloud::open_capture(config, &links, &disk)?;
        let around = Around {
            app: self,
            setup: &setup,
            engine: &engine,
            outbox: outbox.as_ref(),
            disk: &disk,
            capture: capture.clone(),
        };
        let cloud = cloud::start(&links, &around)?;
        if let Some(outbox) = outbox {
            let _ = self.service.set(self.prediction_service(&links, &setup, &engine, outbox, capture));
        }
        let _ = self.cloud.set(cloud);
        let _ = self.device.set(setup.device);
        let _ = self.engine.set(engine);
        Ok(())
    }

    fn announce(&self, setup: &DeviceSetup, engine: &Engine) {
        let (model, lanes) = (&engine.model, &engine.lanes);
        self.metrics().model(&ModelLabels {
            name: model.name.clone(),
            version: model.version.clone(),
            digest: model.digest.clone(),
            precision: model.precision.to_string(),
            device: setup.device.kind.to_string(),
        });
        tracing::info!(
            model = model.name,
            version = model.version,
            precision = %model.precision,
            device = %setup.device.kind,
            reason = setup.device.reason,
            lanes = lanes.count(),
            queue = lanes.capacity(),
            onnxruntime = %setup.runtime.library().display(),
            "model loaded, warmed and checked"
        );
    }

    fn prediction_service(
        &self,
        links: &Links,
        setup: &DeviceSetup,
        engine: &Engine,
        outbox: Arc<Outbox>,
        capture: Option<Arc<Capture>>,
    ) -> PredictService {
        let config = self.config();
        let local = EmbeddedState::new(StateConfig { max_bytes: config.cache.max_bytes.as_u64() });
        let cache = match &links.redis {
            Some(redis) => {
                let store = Arc::clone(&redis.of) as Arc<dyn StateStore>;
                ContentCache::shared(local, store, config.redis.cache_timeout)
            }
            None => ContentCache::local(local),
        };
        PredictService {
            model: engine.model.clone(),
            lanes: Arc::clone(&engine.lanes),
            cache,
            outbox,
            capture,
            metrics: Arc::clone(self.metrics()),
            settings: PredictSettings {
                node: config.node.name.clone(),
                cache_ttl: config.cache.enabled.then_some(config.cache.ttl),
                limits: setup.limits,
            },
            flights: Flights::default(),
            mean_busy_us: AtomicU64::new(0),
        }
    }

    /// Tells batch work to take no more.
    pub(super) fn stop_batch_work(&self) {
        if let Some(cloud) = self.cloud() {
            cloud.stop_batch_work();
        }
    }

    /// Ends batch work and what sends and captures. What is unfinished is taken up by the next start, or by others.
    pub(super) async fn end_cloud(&self, within: Duration) {
        if let Some(cloud) = self.cloud() {
            cloud.end(within).await;
        }
    }

    /// Ends lanes and outbox; blocking. Lanes that were not drained are left to end with the process.
    pub(super) fn end_service(&self, drained: bool) -> Result<(), OutboxError> {
        if let Some(engine) = self.engine().filter(|_| drained) {
            engine.lanes.stop();
        }
        self.service().map_or(Ok(()), |service| service.outbox.close())
    }

    fn start_lanes(&self) -> Result<(DeviceSetup, Lanes), StartError> {
        let config = self.config();
        let setup = prepare_device(config)?;
        let count = setup.lanes(config);
        let queue = match config.engine.queue {
            0 => count * 8,
            queue => queue,
        };
        let observer = Arc::clone(self.metrics());
        let lanes = match self.role() {
            // Somebody waits for each real-time answer, and would wait for all that the lane has begun.
            Role::Serve => Lanes::start(count, queue, setup.factory(), observer)?,
            Role::Worker => {
                let factory = setup.factory_of(WORKER_IMAGES_A_RUN);
                Lanes::start_background(count, queue, WORKER_IMAGES_A_RUN, factory, observer)?
            }
        };
        check_golden(&setup.bundle, &lanes)?;
        Ok((setup, lanes))
    }
}

fn make_data_dir(config: &Config) -> Result<(), StartError> {
    let dir = &config.data_dir;
    std::fs::create_dir_all(dir).map_err(|source| StartError::DataDir { path: dir.clone(), source })
}

/// Makes the data directory and opens the outbox in it.
fn open_outbox(config: &Config) -> Result<Outbox, StartError> {
    make_data_dir(config)?;
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
        durability: config.outbox.durability,
        ..OutboxConfig::new(outbox_dir(&config.data_dir))
    }
}

/// Where the outbox lies in a data directory.
pub fn outbox_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("outbox")
}

fn report(recovery: &Recovery) {
    if recovery.truncated_bytes > 0 {
        tracing::warn!(
            bytes = recovery.truncated_bytes,
            "the outbox ended within an event that was never acknowledged; its torn tail was cut off"
        );
    }
    for damage in &recovery.damaged {
        let path = damage.path.display();
        tracing::error!(%path, offset = damage.offset, bytes = damage.bytes, "part of the outbox can't be read");
    }
    tracing::info!(events = recovery.events, segments = recovery.segments, "outbox open");
}
