//! What the handlers need. Below the routes, which read it, and the start, which fills it.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cloud_sync::secret::Secret;
use inference::decode_memory::DecodeMemory;
use inference::engine::DeviceChoice;

use crate::background::Background;
use crate::batch::{BatchMetrics, BatchService};
use crate::config::Config;
use crate::fetch::Fetcher;
use crate::memory::BodyMemory;
use crate::predict::PredictService;
use crate::rollout::Rollouts;
use crate::serving::{LoadedModel, Models};
use crate::telemetry::{GpuMonitor, Metrics};

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

/// What the handlers share: it is there from the start on, and [`Services`] once everything has started.
pub struct ServerState {
    role: Role,
    config: Config,
    metrics: Arc<Metrics>,
    batch_metrics: BatchMetrics,
    gpus: Arc<GpuMonitor>,
    body_memory: Arc<BodyMemory>,
    decode_memory: Arc<DecodeMemory>,
    fetcher: Fetcher,
    phase: AtomicU8,
    services: OnceLock<Services>,
    started: Instant,
    in_hand: AtomicUsize,
}

/// What serves, complete.
pub struct Services {
    /// The models that are served.
    pub models: Arc<Models>,
    /// What brings new versions of them.
    pub rollouts: Rollouts,
    /// The token of who may change what is served; empty where nobody may.
    pub admin_token: Secret,
    /// Classifies; a worker answers no predictions.
    pub predictions: Option<PredictService>,
    /// Takes batches, where that is switched on; a worker takes none from clients.
    pub batches: Option<Arc<BatchService>>,
    /// Links and what uses them.
    pub background: Background,
    /// The device that serves.
    pub device: DeviceChoice,
}

/// Counts one request in hand for as long as it lives.
pub struct InHand<'a>(&'a AtomicUsize);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ServerState {
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
            services: OnceLock::new(),
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

    /// What has started; None while starting.
    pub fn services(&self) -> Option<&Services> {
        self.services.get()
    }

    /// Everything has started: requests are answered from now on. Of two calls the first counts.
    pub(crate) fn ready(&self, services: Services) -> &Services {
        let services = self.services.get_or_init(|| services);
        self.enter(Phase::Ready);
        services
    }

    /// The prediction service; None while starting, and in a worker.
    pub fn predictions(&self) -> Option<&PredictService> {
        self.services()?.predictions.as_ref()
    }

    /// The batch service; None while starting, and where batches are switched off.
    pub fn batches(&self) -> Option<&Arc<BatchService>> {
        self.services()?.batches.as_ref()
    }

    /// The default model's version that answers; None while starting.
    pub fn engine(&self) -> Option<Arc<LoadedModel>> {
        self.services()?.models.default().current()
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

    /// Requests in hand.
    pub(crate) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }
}
