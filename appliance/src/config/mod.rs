//! Configuration: one struct per section, read from layers and validated once.
//!
//! Later layers take precedence: built-in defaults, weir.toml, environment (`WEIR__HTTP__LISTEN`), flags. An invalid value is
//! refused with its key, value and layer; an unknown key without its value, which may be a secret under a mistyped name.

mod batch;
mod check;
mod engine;
mod fetch;
mod general;
mod http;
mod image;
mod kafka;
mod layers;
mod models;
mod rollout;
mod storage;
mod stores;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use batch::{BatchConfig, MAX_MESSAGE_IMAGES, QueueChoice};
pub use engine::EngineConfig;
pub use fetch::FetchConfig;
pub use general::{CacheConfig, NodeConfig, PredictConfig, ShutdownConfig};
pub use http::HttpConfig;
pub use image::ImageConfig;
pub use kafka::{KafkaSection, Mechanism, Protocol};
pub use layers::{ConfigError, Layers, Loaded};
pub use models::{AdminConfig, ModelConfig, MonitoringConfig, RegistryConfig};
pub use rollout::RolloutConfig;
pub use storage::{BlobsConfig, CaptureConfig, CaptureRule, OutboxConfig};
pub use stores::{RedisSection, S3Section};

use crate::telemetry::LogConfig;

/// Everything that can be set. `weir.toml` at the root of the project documents each key.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder for everything that outlives the process.
    pub data_dir: PathBuf,
    /// The identity of this box.
    pub node: NodeConfig,
    /// The HTTP server.
    pub http: HttpConfig,
    /// Requests for predictions.
    pub predict: PredictConfig,
    /// Limits of images.
    pub image: ImageConfig,
    /// Device, lanes and ONNX Runtime.
    pub engine: EngineConfig,
    /// The model of requests that name none.
    pub model: ModelConfig,
    /// More models, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, ModelConfig>,
    /// The source of models' versions.
    pub registry: RegistryConfig,
    /// The rollout of new versions.
    pub rollout: RolloutConfig,
    /// Summaries of predictions for the registry.
    pub monitoring: MonitoringConfig,
    /// Requests that change what is served.
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
    /// The shutdown.
    pub shutdown: ShutdownConfig,
}

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
    /// Checks the values of each section, and keys of different sections that contradict each other.
    ///
    /// # Errors
    /// The key, and a message that names the value and its bound.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        self.engine.validate()?;
        self.http.validate()?;
        self.predict.validate()?;
        self.image.validate()?;
        self.fetch.validate()?;
        self.outbox.validate()?;
        check::log_filter(&self.log.level).map_err(|reason| ("log.level", reason))?;
        self.batch.validate()?;
        self.kafka.validate()?;
        self.redis.validate()?;
        self.s3.validate()?;
        self.blobs.validate()?;
        self.capture.validate()?;
        self.validate_queue()?;
        self.validate_models()?;
        self.node.validate()
    }

    /// The queue of batch work: what it needs of other sections.
    fn validate_queue(&self) -> check::Check {
        let (batch, missing) = (&self.batch, self.missing_link());
        if !batch.enabled {
            return Ok(());
        }
        if let (QueueChoice::Kafka, Some(key)) = (batch.queue, missing) {
            let what = format!("kafka needs {key} too: workers in other processes share all three");
            return Err(("batch.queue", what));
        }
        let is_embedded = match batch.queue {
            QueueChoice::Embedded => true,
            QueueChoice::Kafka => false,
            QueueChoice::Auto => missing.is_some(),
        };
        // Otherwise the client of the largest batch would be told to retry forever.
        let (room, body) = (self.blobs.max_bytes, batch.max_body);
        if is_embedded && room.as_u64() / 2 < body.as_u64() {
            return Err(("blobs.max_bytes", format!("{room} is less than twice batch.max_body = {body}")));
        }
        Ok(())
    }

    /// The first empty setting of the links that workers in other processes need.
    fn missing_link(&self) -> Option<&'static str> {
        let links = [
            ("kafka.bootstrap_servers", &self.kafka.bootstrap_servers),
            ("redis.host", &self.redis.host),
            ("s3.bucket", &self.s3.bucket),
        ];
        links.into_iter().find(|(_, value)| value.is_empty()).map(|(key, _)| key)
    }

    fn validate_models(&self) -> check::Check {
        let has_registry = self.registry.is_configured();
        models::plain_name("model.name", &self.model.name)?;
        self.model.validate("model.follow", has_registry)?;
        for (name, model) in &self.models {
            model.validate_named(name, has_registry)?;
        }
        self.registry.validate()?;
        self.monitoring.validate(has_registry)?;
        self.admin.validate()?;
        self.rollout.validate()
    }
}
