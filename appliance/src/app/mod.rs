//! Wiring: the parts of the daemon, the order in which they start, and the order in which they end. Nothing else.

mod cloud;
mod files;
mod links;
mod models;
mod parting;
mod run;
mod start;

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cloud_sync::secret::Secret;
use inference::decode_memory::DecodeMemory;
use inference::engine::DeviceChoice;

use crate::batch::{BatchMetrics, BatchService};
use crate::config::Config;
use crate::fetch::Fetcher;
use crate::memory::BodyMemory;
use crate::predict::PredictService;
use crate::rollout::Rollouts;
use crate::serving::{LoadedModel, Models};
use crate::telemetry::{GpuMonitor, Metrics};

pub use cloud::Cloud;
pub use files::{Files, raise_limit};
pub use links::{LinkError, Links, admin_token};
pub use models::{default_name, pull_limits};
pub use run::{RunError, run};
pub use start::{
    DeviceSetup, StartError, create_private, is_open_to_others, load_library, models_dir, outbox_dir,
    prepare_device,
};

/// Where the daemon is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Loading; requests get 503.
    Starting,
    /// Serving.
    Ready,
    /// Finishing what is in hand; new requests get 503.
    Draining,
}

/// What this process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `weir serve`: answers requests; works batches off where their queue is embedded.
    Serve,
    /// `weir worker`: works batches off, and answers for its health only.
    Worker,
}

/// What the routes share.
pub struct App {
    role: Role,
    config: Config,
    metrics: Arc<Metrics>,
    batch_metrics: BatchMetrics,
    gpus: Arc<GpuMonitor>,
    body_memory: Arc<BodyMemory>,
    decode_memory: Arc<DecodeMemory>,
    fetcher: Fetcher,
    phase: AtomicU8,
    models: OnceLock<Arc<Models>>,
    rollouts: OnceLock<Rollouts>,
    admin: OnceLock<Secret>,
    service: OnceLock<PredictService>,
    batches: OnceLock<Arc<BatchService>>,
    cloud: OnceLock<Cloud>,
    device: OnceLock<DeviceChoice>,
    started: Instant,
    in_hand: AtomicUsize,
}

/// Counts one request in hand for as long as it lives.
pub struct InHand<'a>(&'a AtomicUsize);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl App {
    /// The daemon before anything is loaded.
    pub fn new(role: Role, config: Config) -> Arc<Self> {
        let max_inflight = usize::try_from(config.http.max_inflight.as_u64()).unwrap_or(usize::MAX);
        let (metrics, batch_metrics) = (Arc::new(Metrics::new()), BatchMetrics::default());
        metrics.add(|registry| batch_metrics.register(registry));
        Arc::new(Self {
            role,
            metrics,
            batch_metrics,
            gpus: GpuMonitor::new(config.engine.device, &config.engine.library_folders),
            body_memory: BodyMemory::new(max_inflight, config.http.max_body_bytes()),
            decode_memory: DecodeMemory::new(config.image.decode_memory_bytes()),
            fetcher: Fetcher::new(config.fetch.clone(), config.http.max_body_bytes()),
            phase: AtomicU8::new(0),
            models: OnceLock::new(),
            rollouts: OnceLock::new(),
            admin: OnceLock::new(),
            service: OnceLock::new(),
            batches: OnceLock::new(),
            cloud: OnceLock::new(),
            device: OnceLock::new(),
            started: Instant::now(),
            in_hand: AtomicUsize::new(0),
            config,
        })
    }

    /// What this process is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The metrics of batches.
    pub fn batch_metrics(&self) -> &BatchMetrics {
        &self.batch_metrics
    }

    /// The GPUs of this machine.
    pub fn gpus(&self) -> &Arc<GpuMonitor> {
        &self.gpus
    }

    /// Memory for encoded images.
    pub fn body_memory(&self) -> &Arc<BodyMemory> {
        &self.body_memory
    }

    /// Memory for decoding them.
    pub fn decode_memory(&self) -> &Arc<DecodeMemory> {
        &self.decode_memory
    }

    /// Fetches `image_url`s.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// The models that are served; None while starting.
    pub fn models(&self) -> Option<&Arc<Models>> {
        self.models.get()
    }

    /// The default model's version that answers; None while starting.
    pub fn engine(&self) -> Option<Arc<LoadedModel>> {
        self.models.get()?.default().current()
    }

    /// What brings new versions; None while starting.
    pub fn rollouts(&self) -> Option<&Rollouts> {
        self.rollouts.get()
    }

    /// The token of who may change what is served; None while starting, empty where nobody may.
    pub fn admin_token(&self) -> Option<&Secret> {
        self.admin.get()
    }

    /// The batch service; None while starting, and where batches are switched off.
    pub fn batches(&self) -> Option<&Arc<BatchService>> {
        self.batches.get()
    }

    /// Gives the routes their batch service; once.
    pub(crate) fn serve_batches(&self, service: Arc<BatchService>) {
        let _ = self.batches.set(service);
    }

    /// Links and what uses them; None while starting.
    pub fn cloud(&self) -> Option<&Cloud> {
        self.cloud.get()
    }

    /// The prediction service; None while starting, and in a worker.
    pub fn service(&self) -> Option<&PredictService> {
        self.service.get()
    }

    /// The device that serves; None while starting.
    pub fn device(&self) -> Option<&DeviceChoice> {
        self.device.get()
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Where the daemon is in its life.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// Moves on to `phase`; never back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Counts a request in hand until the guard is dropped.
    pub fn request_in_hand(&self) -> InHand<'_> {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        InHand(&self.in_hand)
    }

    fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }
}
