//! Reads and merges the layers, and reports exactly which key of which layer is invalid.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use config::{File, FileFormat, Map, Source, Value, ValueKind};

use super::Config;

const DEFAULT_FILE: &str = "weir.toml";
const ENV_PREFIX: &str = "WEIR__";

/// Common names of settings in deployments. `WEIR__SECTION__KEY` takes precedence; of two names for the same key the later
/// one.
const ALIASES: [(&str, &str); 22] = [
    ("REDIS_HOST", "redis.host"),
    ("REDIS_PORT", "redis.port"),
    ("REDIS_USER", "redis.user"),
    ("REDIS_PASSWORD", "redis.password"),
    ("REDIS_TLS", "redis.tls"),
    ("REDIS_CA_FILE", "redis.ca_file"),
    ("KAFKA_BOOTSTRAP_SERVERS", "kafka.bootstrap_servers"),
    ("KAFKA_USER", "kafka.user"),
    ("KAFKA_PASSWORD", "kafka.password"),
    ("KAFKA_CA_FILE", "kafka.ca_file"),
    ("KAFKA_TOPIC", "kafka.requests_topic"),
    ("KAFKA_RESULTS_TOPIC", "kafka.results_topic"),
    ("KAFKA_GROUP_ID", "kafka.group_id"),
    ("S3_BUCKET", "s3.bucket"),
    ("AWS_ENDPOINT_URL", "s3.endpoint"),
    ("AWS_ENDPOINT_URL_S3", "s3.endpoint"),
    ("AWS_DEFAULT_REGION", "s3.region"),
    ("AWS_REGION", "s3.region"),
    ("MLFLOW_TRACKING_URI", "registry.uri"),
    ("MLFLOW_TRACKING_USERNAME", "registry.user"),
    ("MLFLOW_TRACKING_PASSWORD", "registry.password"),
    ("MLFLOW_TRACKING_TOKEN", "registry.token"),
];

/// Keys of lists, which are separated by commas in variables.
const LISTS: [&str; 8] = [
    "engine.gpus",
    "engine.library_folders",
    "fetch.allow_networks",
    "http.allowed_hosts",
    "http.allowed_origins",
    "image.formats",
    "s3.allow_buckets",
    "s3.allow_prefixes",
];

/// The sources of settings.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// `--config`; without it ./weir.toml is read if it exists.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: HashMap<String, String>,
    /// Flags: name, key such as `http.listen`, and value.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

/// The result of reading the layers.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The validated configuration.
    pub config: Config,
    /// The layers with values, in order: a file's path, `environment`, `flags`.
    pub sources: Vec<String>,
}

/// Why a configuration is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or is not TOML.
    #[error("configuration file {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column where there is one.
        reason: String,
    },
    /// A key is unknown or its value is invalid.
    #[error("{source_name}: {key} = {value}: {reason}")]
    Refused {
        /// The layer, or the variable or flag itself.
        source_name: String,
        /// Dotted key.
        key: String,
        /// The value; hidden for secrets and unknown keys, which may be mistyped names of secrets.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Values that are well-formed but out of range, or contradict each other.
    #[error("{key}: {reason} (set by {sources})")]
    Invalid {
        /// Dotted key.
        key: &'static str,
        /// What is wrong.
        reason: String,
        /// The layers that were read.
        sources: String,
    },
}

struct Layer {
    name: String,
    values: Vec<(String, String, Value)>,
}

impl Layers {
    /// The process's environment only.
    pub fn from_process() -> Self {
        // Variables that are not text are ignored.
        let text =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self { env: text.collect(), ..Self::default() }
    }

    /// Reads, merges and validates.
    ///
    /// # Errors
    /// [`ConfigError`], naming key, value and layer.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let layers = [self.file_layer()?, self.env_layer()?, self.flag_layer()];
        let layers: Vec<Layer> = layers.into_iter().flatten().filter(|l| !l.values.is_empty()).collect();
        let mut builder = config::Config::builder();
        for layer in &layers {
            for (origin, key, value) in &layer.values {
                check_one(origin, key, value)?;
                builder =
                    builder.set_override(key, value.clone()).map_err(|e| refused(origin, key, value, &e))?;
            }
        }
        let sources: Vec<String> = layers.iter().map(|l| l.name.clone()).collect();
        let listed = if sources.is_empty() { "defaults".to_owned() } else { sources.join(", ") };
        let invalid = |key, reason| ConfigError::Invalid { key, reason, sources: listed.clone() };
        let config: Config = builder
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|e| invalid("configuration", e.to_string()))?;
        config.validate().map_err(|(key, reason)| invalid(key, reason))?;
        Ok(Loaded { config, sources })
    }

    fn file_layer(&self) -> Result<Option<Layer>, ConfigError> {
        let path = match &self.file {
            Some(path) => path.as_path(),
            None if Path::new(DEFAULT_FILE).is_file() => Path::new(DEFAULT_FILE),
            None => return Ok(None),
        };
        let failed = |reason: String| ConfigError::File { path: path.into(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let map = File::from_str(&text, FileFormat::Toml).collect().map_err(|_| failed(not_toml(&text)))?;
        let name = path.display().to_string();
        let mut values = Vec::new();
        flatten("", map, &mut |key, value| values.push((name.clone(), key, value)));
        Ok(Some(Layer { name, values }))
    }

    fn env_layer(&self) -> Result<Option<Layer>, ConfigError> {
        let given = |name| self.env.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        let aliased = ALIASES.iter().filter_map(|(name, key)| Some((*name, *key, given(*name)?)));
        let aliases: Vec<_> = aliased
            .map(|(name, key, text)| (name.into(), key.into(), parse(key, unlinked(key, text))))
            .collect();
        let mut values = Vec::new();
        for (name, text) in &self.env {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            let key = rest.to_lowercase().replace("__", ".");
            values.push((name.clone(), key.clone(), parse(&key, text)));
        }
        values.sort_by(|a: &(String, String, Value), b| a.0.cmp(&b.0));
        values.splice(0..0, aliases);
        Ok(Some(Layer { name: "environment".into(), values }))
    }

    fn flag_layer(&self) -> Option<Layer> {
        let values =
            self.flags.iter().map(|(flag, key, text)| ((*flag).into(), (*key).into(), parse(key, text)));
        Some(Layer { name: "flags".into(), values: values.collect() })
    }
}

/// The value of a text from a variable or a flag.
fn parse(key: &str, text: &str) -> Value {
    let kind = if LISTS.contains(&key) {
        let items = text.split(',').map(str::trim).filter(|t| !t.is_empty());
        ValueKind::Array(items.map(|item| Value::new(None, item)).collect())
    } else {
        // The key's type decides how text is read: a box may be called 007.
        ValueKind::String(text.into())
    };
    Value::new(None, kind)
}

/// With a Service named `redis`, Kubernetes sets REDIS_PORT to an address (`tcp://10.2.0.7:6379`) in every pod.
fn unlinked<'a>(key: &str, text: &'a str) -> &'a str {
    match text.strip_prefix("tcp://").and_then(|address| address.rsplit_once(':')) {
        Some((_, port)) if key == "redis.port" => port,
        _ => text,
    }
}

fn flatten(prefix: &str, map: Map<String, Value>, out: &mut impl FnMut(String, Value)) {
    for (key, value) in map {
        let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value.kind {
            ValueKind::Table(inner) => flatten(&key, inner, out),
            _ => out(key, value),
        }
    }
}

/// Merges a single key with the defaults, so that an error is known to be of this key and layer.
fn check_one(origin: &str, key: &str, value: &Value) -> Result<(), ConfigError> {
    config::Config::builder()
        .set_override(key, value.clone())
        .and_then(config::ConfigBuilder::<config::builder::DefaultState>::build)
        .and_then(config::Config::try_deserialize::<Config>)
        .map(drop)
        .map_err(|e| refused(origin, key, value, &e))
}

/// Words in names of secrets, also in mistyped ones.
const SECRET: [&str; 6] = ["pass", "pwd", "secret", "token", "key", "credential"];

fn refused(origin: &str, key: &str, value: &Value, error: &config::ConfigError) -> ConfigError {
    let secret = SECRET.iter().any(|word| key.contains(word));
    let error = error.to_string();
    // Only `section.key` and `models.name.key` are keys; the error of an unknown one contains its name, never its value.
    let unknown = error.contains("unknown field");
    let known = !unknown && (key == "data_dir" || key.split('.').count() == 2 || key.starts_with("models."));
    let shown = match &value.kind {
        _ if secret || !known => "(hidden)".to_owned(),
        ValueKind::String(text) => format!("{text:?}"),
        _ => value.to_string(),
    };
    let reason = if unknown || known && !secret { error } else { "not accepted".to_owned() };
    ConfigError::Refused { source_name: origin.into(), key: key.into(), value: shown, reason }
}

/// Where and why a file is not TOML. The parser's own text would show the line, which may contain a password.
fn not_toml(text: &str) -> String {
    let Err(error) = toml::from_str::<toml::Table>(text) else { return "it is not TOML".into() };
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
    format!("line {line}, column {column}: {}", error.message())
}
