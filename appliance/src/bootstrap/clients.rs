//! The configured links: from settings and secret files to clients, each with its health.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::blob::{S3Config, S3Store};
use cloud_sync::error::{Link, SyncError};
use cloud_sync::health::LinkHealth;
use cloud_sync::kafka::{KafkaConfig, SaslMechanism, SecurityProtocol};
use cloud_sync::redis::{RedisConfig, RedisStore};
use cloud_sync::registry::{DirRegistry, MlflowConfig, MlflowRegistry, ModelRegistry};
use cloud_sync::secret::Secret;

use tokio::runtime::Handle;

use crate::config::{Config, Mechanism, Protocol, QueueChoice};

/// Timeout of a call to Redis, including the connection.
const REDIS_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a link cannot be used as configured. A server that is down is not an error.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A configured file cannot be read.
    #[error("{key} = {}: {source}. Remedy: correct the path, or make the file readable for this user", path.display())]
    File {
        /// The setting.
        key: &'static str,
        /// Its value.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The client refuses the settings.
    #[error("{}", .0.in_full())]
    Settings(#[from] SyncError),
}

/// A link and its health, as its own calls show it.
#[derive(Debug)]
pub struct Linked<T> {
    /// The client, or what it is made from.
    pub client: T,
    /// Its health.
    pub health: LinkHealth,
}

impl<T> Linked<T> {
    fn new(link: Link, open: impl FnOnce(LinkHealth) -> Result<T, LinkError>) -> Result<Self, LinkError> {
        let health = LinkHealth::new(link);
        Ok(Self { client: open(health.clone())?, health })
    }
}

/// The configured links.
#[derive(Debug)]
pub struct Links {
    /// The broker.
    pub kafka: Option<Linked<KafkaConfig>>,
    /// Redis.
    pub redis: Option<Linked<Arc<RedisStore>>>,
    /// The object storage.
    pub s3: Option<Linked<Arc<S3Store>>>,
    /// The health of the MLflow server.
    pub mlflow: Option<LinkHealth>,
}

impl Links {
    /// Reads the secrets and makes the clients; blocking. Nothing is connected yet.
    ///
    /// # Errors
    /// [`LinkError`], naming the setting.
    pub fn open(config: &Config, runtime: &Handle) -> Result<Self, LinkError> {
        let kafka = (!config.kafka.bootstrap_servers.is_empty())
            .then(|| Linked::new(Link::Kafka, |_| kafka_config(config)));
        let redis = (!config.redis.host.is_empty()).then(|| {
            Linked::new(Link::Redis, |health| Ok(Arc::new(RedisStore::open(redis_config(config)?, health)?)))
        });
        let s3 = (!config.s3.bucket.is_empty()).then(|| {
            Linked::new(Link::S3, |health| {
                Ok(Arc::new(runtime.block_on(S3Store::open(s3_config(config)?, health))?))
            })
        });
        let mlflow = (!config.registry.uri.is_empty()).then(|| LinkHealth::new(Link::Mlflow));
        Ok(Self { kafka: kafka.transpose()?, redis: redis.transpose()?, s3: s3.transpose()?, mlflow })
    }

    /// The model registry. Nothing is connected yet.
    ///
    /// # Errors
    /// [`LinkError`], naming the setting.
    pub fn registry(&self, config: &Config) -> Result<Option<Arc<dyn ModelRegistry>>, LinkError> {
        let registry = &config.registry;
        if let Some(dir) = &registry.dir {
            return Ok(Some(Arc::new(DirRegistry::new(dir))));
        }
        let Some(health) = &self.mlflow else { return Ok(None) };
        readable("registry.ca_file", registry.ca_file.as_deref())?;
        let mlflow = MlflowConfig {
            user: (!registry.user.is_empty()).then(|| registry.user.clone()),
            password: secret(
                "registry.password_file",
                &registry.password,
                registry.password_file.as_deref(),
            )?,
            token: secret("registry.token_file", &registry.token, registry.token_file.as_deref())?,
            ca_file: registry.ca_file.clone(),
            timeout: registry.timeout,
            ..MlflowConfig::new(&registry.uri)
        };
        let s3 = self.s3.as_ref().map(|s3| Arc::clone(&s3.client));
        Ok(Some(Arc::new(MlflowRegistry::open(&mlflow, s3, health.clone())?)))
    }

    /// The queue of batch work, and the reason for the choice.
    pub fn queue(&self, config: &Config) -> (QueueChoice, &'static str) {
        let all = self.kafka.is_some() && self.redis.is_some() && self.s3.is_some();
        match config.batch.queue {
            QueueChoice::Auto if all => (QueueChoice::Kafka, "Kafka, Redis and S3 are configured"),
            QueueChoice::Auto => (QueueChoice::Embedded, "not all of Kafka, Redis and S3 are configured"),
            set => (set, "set by batch.queue"),
        }
    }

    /// The health of each link.
    pub fn health(&self) -> Vec<LinkHealth> {
        let kafka = self.kafka.as_ref().map(|link| link.health.clone());
        let redis = self.redis.as_ref().map(|link| link.health.clone());
        let s3 = self.s3.as_ref().map(|link| link.health.clone());
        [kafka, redis, s3, self.mlflow.clone()].into_iter().flatten().collect()
    }
}

/// The token for requests that change what is served; empty where they are disabled.
///
/// # Errors
/// When its file cannot be read.
pub fn admin_token(config: &Config) -> Result<Secret, LinkError> {
    secret("admin.token_file", &config.admin.token, config.admin.token_file.as_deref())
}

/// # Errors
/// When a secret's file cannot be read.
fn kafka_config(config: &Config) -> Result<KafkaConfig, LinkError> {
    let kafka = &config.kafka;
    readable("kafka.ca_file", kafka.ca_file.as_deref())?;
    Ok(KafkaConfig {
        bootstrap_servers: kafka.bootstrap_servers.clone(),
        protocol: match kafka.protocol() {
            Protocol::Auto | Protocol::SaslSsl => SecurityProtocol::SaslSsl,
            Protocol::Plaintext => SecurityProtocol::Plaintext,
            Protocol::Ssl => SecurityProtocol::Ssl,
            Protocol::SaslPlaintext => SecurityProtocol::SaslPlaintext,
        },
        mechanism: match kafka.sasl_mechanism {
            Mechanism::ScramSha512 => SaslMechanism::ScramSha512,
            Mechanism::ScramSha256 => SaslMechanism::ScramSha256,
            Mechanism::Plain => SaslMechanism::Plain,
        },
        user: kafka.user.clone(),
        password: secret("kafka.password_file", &kafka.password, kafka.password_file.as_deref())?,
        ca_file: kafka.ca_file.clone(),
        requests_topic: kafka.requests_topic.clone(),
        results_topic: kafka.results_topic.clone(),
        group_id: kafka.group_id.clone(),
        client_id: config.node.name.clone(),
        max_message_bytes: usize::try_from(kafka.max_message.as_u64()).unwrap_or(usize::MAX),
        session_timeout: kafka.session_timeout,
    })
}

fn redis_config(config: &Config) -> Result<RedisConfig, LinkError> {
    let redis = &config.redis;
    readable("redis.ca_file", redis.ca_file.as_deref())?;
    Ok(RedisConfig {
        host: redis.host.clone(),
        port: redis.port,
        tls: redis.is_encrypted(),
        ca_file: redis.ca_file.clone(),
        user: redis.user.clone(),
        password: secret("redis.password_file", &redis.password, redis.password_file.as_deref())?,
        database: redis.database,
        prefix: redis.prefix.clone(),
        status_ttl: config.batch.status_ttl,
        timeout: REDIS_TIMEOUT,
    })
}

fn s3_config(config: &Config) -> Result<S3Config, LinkError> {
    let s3 = &config.s3;
    readable("s3.ca_file", s3.ca_file.as_deref())?;
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(S3Config {
        prefix: s3.prefix.clone(),
        endpoint: given(&s3.endpoint),
        region: given(&s3.region),
        ca_file: s3.ca_file.clone(),
        ..S3Config::new(&s3.bucket)
    })
}

fn secret(key: &'static str, given: &Secret, file: Option<&Path>) -> Result<Secret, LinkError> {
    let Some(path) = file else { return Ok(given.clone()) };
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| LinkError::File { key, path: path.into(), source })?;
    // An editor ends a file with a newline; passwords do not end with one.
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

fn readable(key: &'static str, file: Option<&Path>) -> Result<(), LinkError> {
    let Some(path) = file else { return Ok(()) };
    let opened = std::fs::File::open(path).map(drop);
    opened.map_err(|source| LinkError::File { key, path: path.into(), source })
}
