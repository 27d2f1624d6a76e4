//! The state that handlers share: filled by the start, read by the routes.

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

/// The phase of the daemon's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Loading; requests get 503.
    Starting,
    /// Serving.
    Ready,
    /// Finishing requests in flight; new requests get 503.
    Draining,
}

/// The role of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `weir serve`: answers requests, and works on batches where the queue is embedded.
    Serve,
    /// `weir worker`: works on batches; HTTP is for health and metrics only.
    Worker,
}

/// The state that handlers share. It exists from the start on; [`Services`] follow once everything has started.
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

/// The services of a process that has started.
pub struct Services {
    /// The models that are served.
    pub models: Arc<Models>,
    /// Their rollouts.
    pub rollouts: Rollouts,
    /// The token for requests that change what is served; empty where they are disabled.
    pub admin_token: Secret,
    /// The prediction service; a worker has none.
    pub predictions: Option<PredictService>,
    /// The batch service, where batches are enabled; a worker has none.
    pub batches: Option<Arc<BatchService>>,
    /// Background work and the links that it uses.
    pub background: Background,
    /// The device that serves.
    pub device: DeviceChoice,
}

/// Counts a request in flight until it is dropped.
pub struct InHand<'a>(&'a AtomicUsize);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ServerState {
    /// The state before anything is loaded.
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

    /// The role of the process.
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

    /// The services; `None` while starting.
    pub fn services(&self) -> Option<&Services> {
        self.services.get()
    }

    /// Sets the services: requests are answered from now on. Only the first call has an effect.
    pub(crate) fn ready(&self, services: Services) -> &Services {
        let services = self.services.get_or_init(|| services);
        self.enter(Phase::Ready);
        services
    }

    /// The prediction service; `None` while starting, and in a worker.
    pub fn predictions(&self) -> Option<&PredictService> {
        self.services()?.predictions.as_ref()
    }

    /// The batch service; `None` while starting, and where batches are disabled.
    pub fn batches(&self) -> Option<&Arc<BatchService>> {
        self.services()?.batches.as_ref()
    }

    /// The default model's current version; `None` while starting.
    pub fn engine(&self) -> Option<Arc<LoadedModel>> {
        self.services()?.models.default().current()
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The phase of the daemon's life.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// Advances to `phase`; never back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Counts a request in flight until the guard is dropped.
    pub fn request_in_hand(&self) -> InHand<'_> {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        InHand(&self.in_hand)
    }

    /// Requests in flight.
    pub(crate) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::Relaxed)
    }
}
