//! The configurations of batches and of the links: Kafka, Redis, S3, and what is captured for training.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use cloud_sync::secret::Secret;
use serde::{Deserialize, Serialize};

/// Most images of one message. Their results are published in one transaction, and are in memory until then.
pub const MAX_MESSAGE_IMAGES: u64 = 10_000;

/// Batch requests and the work on them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Whether batches are taken at all.
    pub enabled: bool,
    /// Where batch work waits.
    pub queue: QueueChoice,
    /// Most images in one batch.
    pub max_images: u64,
    /// Largest body of a batch request; it is read to disk, not into memory.
    pub max_body: ByteSize,
    /// Longest time for the body of a batch request to arrive.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// Images a message: what one worker takes at once.
    pub chunk: usize,
    /// Messages out for work at once, a process.
    pub inflight: usize,
    /// Images being loaded at once, a process.
    pub concurrent_fetches: usize,
    /// Tries to load an image before it counts as failed.
    pub attempts: u32,
    /// Longest time that the work on one batch may take, from when a process begins with it; what is not done by then has
    /// failed.
    #[serde(with = "humantime_serde")]
    pub time_limit: Duration,
    /// Results are part of the status up to so many images.
    pub inline_results: u64,
    /// Bytes of work that may wait in the embedded queue; beyond it batches get 429.
    pub max_queued: ByteSize,
    /// How long the status of a batch is kept after its last change.
    #[serde(with = "humantime_serde")]
    pub status_ttl: Duration,
}

/// Where batch work waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueChoice {
    /// Kafka where Kafka, Redis and S3 are all configured, else embedded.
    #[default]
    Auto,
    /// In this process, in the data directory; this process works it off.
    Embedded,
    /// In Kafka; `weir worker` processes work it off.
    Kafka,
}

/// The Kafka broker. Without `bootstrap_servers` there is none.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSection {
    /// `host:port`, several with commas between.
    pub bootstrap_servers: String,
    /// How the connection is secured.
    pub security_protocol: Protocol,
    /// How the user logs in.
    pub sasl_mechanism: Mechanism,
    /// The user.
    pub user: String,
    /// Their password.
    pub password: Secret,
    /// File that holds the password, in place of `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// PEM file of the authorities that may have signed the broker's certificate; the system's otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Topic of batch work.
    pub requests_topic: String,
    /// Topic of results and events.
    pub results_topic: String,
    /// Consumer group of the workers.
    pub group_id: String,
    /// Whether `serve` sends its events to the results topic.
    pub publish_events: bool,
    /// Most events that the results topic may refuse one after the other; beyond that they wait in the outbox.
    pub max_rejections: u32,
    /// Largest record that is sent or taken.
    pub max_message: ByteSize,
    /// How long a worker may be silent before its work goes to others.
    #[serde(with = "humantime_serde")]
    pub session_timeout: Duration,
}

/// How a Kafka connection is secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Protocol {
    /// `SASL_SSL` where a user is set, else `SSL` where a `ca_file` is, else `PLAINTEXT`.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Neither encrypted nor authenticated.
    #[serde(rename = "PLAINTEXT")]
    Plaintext,
    /// Encrypted.
    #[serde(rename = "SSL")]
    Ssl,
    /// Authenticated.
    #[serde(rename = "SASL_PLAINTEXT")]
    SaslPlaintext,
    /// Encrypted and authenticated.
    #[serde(rename = "SASL_SSL")]
    SaslSsl,
}

/// How a user logs in to Kafka.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Mechanism {
    /// SCRAM with SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// SCRAM with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// The password itself.
    #[serde(rename = "PLAIN")]
    Plain,
}

/// The Redis server. Without `host` there is none.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisSection {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether the connection is encrypted. Unless set it is where a `ca_file` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// PEM file of the authorities that may have signed the server's certificate; the system's otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The user, where the server has several.
    pub user: String,
    /// The password.
    pub password: Secret,
    /// File that holds the password, in place of `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Number of the database.
    pub database: u16,
    /// Comes before every key, so that several fleets can share a server.
    pub prefix: String,
    /// Longest time that a prediction waits for the shared cache; then it goes on without.
    #[serde(with = "humantime_serde")]
    pub cache_timeout: Duration,
}

/// The object storage. Without `bucket` there is none. Credentials come from the usual AWS chain.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Section {
    /// The bucket.
    pub bucket: String,
    /// Comes before every key.
    pub prefix: String,
    /// URL of the service; AWS's own otherwise.
    pub endpoint: String,
    /// Region.
    pub region: String,
    /// PEM file of the authorities that may have signed the server's certificate; the system's otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Other buckets that `s3://` URLs of images may name.
    pub allow_buckets: Vec<String>,
    /// Beginnings of keys in the own bucket that `s3://` URLs of images may name beside those under `prefix`.
    pub allow_prefixes: Vec<String>,
}

/// What lies in the data directory where there is no object storage: files and results of batches, captured images.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlobsConfig {
    /// Bytes on disk, at most.
    pub max_bytes: ByteSize,
    /// Room on the disk that is left to others, the outbox among them.
    pub min_free: ByteSize,
}

/// Images kept as raw material for the next training set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureConfig {
    /// Which images.
    pub rule: CaptureRule,
    /// `rule = "below"`: images whose confidence is under it.
    pub confidence_below: f32,
    /// `rule = "sample"`: this share of the images, 0 to 1.
    pub sample: f64,
    /// Bytes on disk for images that wait to be sent; beyond it new ones are not kept.
    pub max_bytes: ByteSize,
}

/// Which images are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureRule {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// Those that the model is unsure of.
    Below,
    /// A sample, chosen by digest: the same image is always in or always out.
    Sample,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            queue: QueueChoice::default(),
            max_images: 200_000,
            max_body: ByteSize::mib(256),
            body_timeout: Duration::from_secs(600),
            chunk: 256,
            inflight: 4,
            concurrent_fetches: 16,
            attempts: 4,
            time_limit: Duration::from_secs(24 * 3600),
            inline_results: 100,
            max_queued: ByteSize::gib(1),
            status_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

impl Default for KafkaSection {
    fn default() -> Self {
        Self {
            bootstrap_servers: String::new(),
            security_protocol: Protocol::default(),
            sasl_mechanism: Mechanism::default(),
            user: String::new(),
            password: Secret::default(),
            password_file: None,
            ca_file: None,
            requests_topic: "fish-classification-requests".into(),
            results_topic: "fish-classification-results".into(),
            group_id: "ml-workers".into(),
            publish_events: true,
            max_rejections: 100,
            max_message: ByteSize::mib(16),
            session_timeout: Duration::from_secs(45),
        }
    }
}

impl Default for RedisSection {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 6379,
            tls: None,
            ca_file: None,
            user: String::new(),
            password: Secret::default(),
            password_file: None,
            database: 0,
            prefix: "weir".into(),
            cache_timeout: Duration::from_millis(5),
        }
    }
}

impl Default for BlobsConfig {
    fn default() -> Self {
        Self { max_bytes: ByteSize::gib(10), min_free: ByteSize::mib(512) }
    }
}

impl RedisSection {
    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.tls.unwrap_or(self.ca_file.is_some())
    }
}

impl KafkaSection {
    /// How the connection is secured; never [`Protocol::Auto`].
    pub fn protocol(&self) -> Protocol {
        match self.security_protocol {
            Protocol::Auto if !self.user.is_empty() => Protocol::SaslSsl,
            Protocol::Auto if self.ca_file.is_some() => Protocol::Ssl,
            Protocol::Auto => Protocol::Plaintext,
            told => told,
        }
    }
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            rule: CaptureRule::default(),
            confidence_below: 0.6,
            sample: 0.01,
            max_bytes: ByteSize::gib(2),
        }
    }
}
