//! Configuration: one struct of module configurations, read from layers and validated once.
//!
//! Layers, later ones over earlier ones: built-in defaults, weir.toml, environment (`WEIR__HTTP__LISTEN`), flags. A bad
//! value is refused with the key, the value and the layer that it came from; an unknown key without its value, which
//! may be a secret under a mistyped name.

mod checks;
mod cloud;
mod layers;
mod memory_limit;
mod models;
mod sections;
mod sites;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

pub use cloud::{
    BatchConfig, BlobsConfig, CaptureConfig, CaptureRule, KafkaSection, MAX_MESSAGE_IMAGES, Mechanism,
    Protocol, QueueChoice, RedisSection, S3Section,
};
use cloud_sync::outbox::MAX_BULK_SHARE;
pub use layers::{ConfigError, Layers, Loaded};
pub use models::{AdminConfig, ModelConfig, MonitoringConfig, RegistryConfig, RolloutConfig};
pub use sections::{
    CacheConfig, EngineConfig, FetchConfig, HttpConfig, ImageConfig, NodeConfig, OutboxConfig, PredictConfig,
    ShutdownConfig,
};
use sites::{is_host_pattern, is_origin};

use crate::telemetry::LogConfig;

/// Everything that can be set. `weir.toml` at the root of the project documents each key.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder for everything that outlives the process.
    pub data_dir: PathBuf,
    /// Who this box is.
    pub node: NodeConfig,
    /// The HTTP server.
    pub http: HttpConfig,
    /// Requests for predictions.
    pub predict: PredictConfig,
    /// Bounds on images.
    pub image: ImageConfig,
    /// Device, lanes and ONNX Runtime.
    pub engine: EngineConfig,
    /// The model that is meant when a request names none.
    pub model: ModelConfig,
    /// More models, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, ModelConfig>,
    /// Where versions of models come from.
    pub registry: RegistryConfig,
    /// How a new version comes to serve.
    pub rollout: RolloutConfig,
    /// Summaries of what this box sees.
    pub monitoring: MonitoringConfig,
    /// Who may change what is served.
    pub admin: AdminConfig,
    /// The content cache.
    pub cache: CacheConfig,
    /// The log of events that leave the box.
    pub outbox: OutboxConfig,
    /// `image_url`: what may be fetched.
    pub fetch: FetchConfig,
    /// Batch requests.
    pub batch: BatchConfig,
    /// The Kafka broker.
    pub kafka: KafkaSection,
    /// The Redis server.
    pub redis: RedisSection,
    /// The object storage.
    pub s3: S3Section,
    /// Objects in the data directory.
    pub blobs: BlobsConfig,
    /// Images kept for training.
    pub capture: CaptureConfig,
    /// Logs.
    pub log: LogConfig,
    /// The end of the process.
    pub shutdown: ShutdownConfig,
}

/// A camera's frame must fit, whatever its type.
const MIN_DECODE_MEMORY: u64 = 64 << 20;
/// A client that waits longer has gone.
/// A longer wait for other images would be an answer's whole time.
const MAX_BATCH_DELAY: Duration = Duration::from_secs(1);
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("weir-data"),
            node: NodeConfig::default(),
            http: HttpConfig::default(),
            predict: PredictConfig::default(),
            image: ImageConfig::default(),
            engine: EngineConfig::default(),
            model: ModelConfig::default(),
            models: BTreeMap::new(),
            registry: RegistryConfig::default(),
            rollout: RolloutConfig::default(),
            monitoring: MonitoringConfig::default(),
            admin: AdminConfig::default(),
            cache: CacheConfig::default(),
            outbox: OutboxConfig::default(),
            fetch: FetchConfig::default(),
            batch: BatchConfig::default(),
            kafka: KafkaSection::default(),
            redis: RedisSection::default(),
            s3: S3Section::default(),
            blobs: BlobsConfig::default(),
            capture: CaptureConfig::default(),
            log: LogConfig::default(),
            shutdown: ShutdownConfig::default(),
        }
    }
}

impl Config {
    /// Checks what no single key can say: values out of range and keys that contradict each other.
    ///
    /// # Errors
    /// The key, and a sentence that names the value and its bound.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        let within = |key, value: u64, low: u64, high: u64| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err((key, format!("{value} is not between {low} and {high}"))),
        };
        within("engine.lanes", self.engine.lanes as u64, 0, 1024)?;
        within("engine.queue", self.engine.queue as u64, 0, 65_536)?;
        within("engine.max_batch", self.engine.max_batch as u64, 1, 1024)?;
        within("engine.decode_threads", self.engine.decode_threads as u64, 0, 1024)?;
        if self.engine.max_delay > MAX_BATCH_DELAY {
            let value = humantime::format_duration(self.engine.max_delay);
            return Err(("engine.max_delay", format!("{value} is more than a second")));
        }
        let gpus = &self.engine.gpus;
        if let Some(twice) = gpus.iter().enumerate().find(|(at, gpu)| gpus[..*at].contains(gpu)) {
            return Err(("engine.gpus", format!("{} stands there twice", twice.1)));
        }
        within("http.io_threads", self.http.io_threads as u64, 0, 1024)?;
        within("http.max_connections", self.http.max_connections as u64, 1, 1_000_000)?;
        within("http.max_files", self.http.max_files as u64, 1, 1000)?;
        within("http.max_body", self.http.max_body.as_u64(), 1, 1 << 30)?;
        within("predict.top_k", self.predict.top_k as u64, 1, 1000)?;
        within("image.max_pixels", self.image.max_pixels, 1, 1 << 31)?;
        within("image.max_scans", u64::from(self.image.max_scans), 1, 100_000)?;
        let decode = u64::try_from(self.image.decode_timeout.as_millis()).unwrap_or(u64::MAX);
        within("image.decode_timeout (in milliseconds)", decode, 10, 24 * 3600 * 1000)?;
        if let Some(bytes) = self.image.decode_memory {
            within("image.decode_memory", bytes.as_u64(), MIN_DECODE_MEMORY, 1 << 42)?;
        }
        let stall = u64::try_from(self.engine.stall_timeout.as_millis()).unwrap_or(u64::MAX);
        within("engine.stall_timeout (in milliseconds)", stall, 100, 24 * 3600 * 1000)?;
        if self.image.formats.is_empty() {
            return Err(("image.formats", "it names no format, so that no image would be accepted".into()));
        }
        within("fetch.min_rate", self.fetch.min_rate.as_u64(), 0, 1 << 30)?;
        within("fetch.max_concurrent", self.fetch.max_concurrent as u64, 1, 65_536)?;
        within("outbox.max_bytes", self.outbox.max_bytes.as_u64(), 64 << 10, 1 << 50)?;
        within("outbox.batch_share", u64::from(self.outbox.batch_share), 1, u64::from(MAX_BULK_SHARE))?;
        within("outbox.segment", self.outbox.segment.as_u64(), 16 << 10, 1 << 32)?;
        if self.http.max_inflight < self.http.max_body {
            return Err((
                "http.max_inflight",
                format!("{} is less than http.max_body = {}", self.http.max_inflight, self.http.max_body),
            ));
        }
        let per_address = self.http.max_inflight_per_address.as_u64();
        if per_address != 0 && per_address < self.http.max_body.as_u64() {
            return Err((
                "http.max_inflight_per_address",
                format!(
                    "{} is less than http.max_body = {}",
                    self.http.max_inflight_per_address, self.http.max_body
                ),
            ));
        }
        within(
            "http.max_connections_per_address",
            self.http.max_connections_per_address as u64,
            0,
            1_000_000,
        )?;
        within("http.min_rate", self.http.min_rate.as_u64(), 0, 1 << 30)?;
        if let Some(bad) = self.http.allowed_hosts.iter().find(|name| !is_host_pattern(name)) {
            return Err(("http.allowed_hosts", format!("{bad:?} is no host name, *.name or *")));
        }
        if let Some(bad) = self.http.allowed_origins.iter().find(|origin| !is_origin(origin)) {
            return Err((
                "http.allowed_origins",
                format!("{bad:?} is no origin such as https://board.example.com, nor *"),
            ));
        }
        for (key, value) in [
            ("predict.deadline", self.predict.deadline),
            ("http.body_timeout", self.http.body_timeout),
            ("http.header_timeout", self.http.header_timeout),
            ("http.idle_timeout", self.http.idle_timeout),
            ("http.rate_window", self.http.rate_window),
            ("fetch.timeout", self.fetch.timeout),
            ("fetch.rate_window", self.fetch.rate_window),
        ] {
            if value.is_zero() {
                return Err((key, "0s: nothing could ever be answered".into()));
            }
        }
        if self.predict.max_deadline > MAX_DEADLINE {
            let value = humantime::format_duration(self.predict.max_deadline);
            return Err(("predict.max_deadline", format!("{value} is more than a day")));
        }
        check_log_filter(&self.log.level).map_err(|reason| ("log.level", reason))?;
        if self.predict.max_deadline < self.predict.deadline {
            return Err((
                "predict.max_deadline",
                format!(
                    "{} is less than predict.deadline = {}",
                    humantime::format_duration(self.predict.max_deadline),
                    humantime::format_duration(self.predict.deadline)
                ),
            ));
        }
        self.validate_links()?;
        self.validate_models()?;
        if self.node.name.is_empty() || self.node.name.len() > 253 {
            return Err(("node.name", format!("{:?}: 1 to 253 characters", self.node.name)));
        }
        Ok(())
    }
}

/// The filter's own parser takes a misspelt level for the name of a module, and then nothing is logged at all.
fn check_log_filter(filter: &str) -> Result<(), String> {
    for part in filter.split(',').map(str::trim).filter(|part| !part.contains(['=', '['])) {
        if part.parse::<LevelFilter>().is_err() {
            return Err(format!("{part:?} is no level; levels are error, warn, info, debug, trace and off"));
        }
    }
    EnvFilter::builder().parse(filter).map(drop).map_err(|e| format!("{filter:?}: {e}"))
}
