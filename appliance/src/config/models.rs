//! `[model]` and `[models]`: what is served. `[registry]`, `[monitoring]` and `[admin]`: where versions come from, what is
//! reported, and who may change what is served.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use cloud_sync::registry::ModelReference;
use cloud_sync::secret::Secret;
use serde::{Deserialize, Serialize};

use super::check::{Check, at_least, either, http_url, within};

/// A model that is served.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Its name, as in `?model=`; the bundle's own name otherwise. Only for the default model: the others are named by their
    /// tables.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Folder of the bundle that is served until a version of `follow` is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<PathBuf>,
    /// What to follow in the registry: `fish-classifier@champion`, or `fish-classifier/3` for good.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub follow: String,
}

impl ModelConfig {
    /// `key` is the setting; `has_registry` is whether there is a registry to follow.
    pub(super) fn validate(&self, key: &'static str, has_registry: bool) -> Check {
        if self.follow.is_empty() {
            return Ok(());
        }
        ModelReference::from_str(&self.follow).map_err(|error| (key, error.to_string()))?;
        if !has_registry {
            let follow = &self.follow;
            let what = format!("{follow:?}, but there is no registry; set registry.uri or registry.dir");
            return Err((key, what));
        }
        Ok(())
    }

    /// Checks a model that has a table of its own, `[models.NAME]`.
    pub(super) fn validate_named(&self, name: &str, has_registry: bool) -> Check {
        plain_name("models", name)?;
        self.validate("models", has_registry)?;
        if self.follow.is_empty() && self.bundle.is_none() {
            return Err(("models", format!("[models.{name}] has neither bundle nor follow")));
        }
        if !self.name.is_empty() {
            return Err(("models", format!("[models.{name}] is its name; it takes no key called name")));
        }
        Ok(())
    }
}

/// The source of models' versions. Without `uri` and `dir` there is no registry.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// The MLflow server, such as `http://mlflow:5000`.
    pub uri: String,
    /// A folder of models in place of a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// The user, for servers with a login.
    pub user: String,
    /// Their password.
    pub password: Secret,
    /// File that holds the password, in place of `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Bearer token, in place of user and password.
    pub token: Secret,
    /// File that holds the token, in place of `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// PEM file of the authorities that may have signed the server's certificate; the system's otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Interval at which the registry is polled, with a jitter of a fifth, so that a fleet does not poll at once.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// Timeout of a reply of the server, or of a pause in a download.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Versions per model that are kept on disk.
    pub retain_versions: usize,
    /// Maximum size of a version, all files together.
    pub max_bundle: ByteSize,
    /// Whether versions are tagged with their state on this box (`weir.<node>.state`).
    pub tag: bool,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            uri: String::new(),
            dir: None,
            user: String::new(),
            password: Secret::default(),
            password_file: None,
            token: Secret::default(),
            token_file: None,
            ca_file: None,
            poll_interval: Duration::from_secs(60),
            timeout: Duration::from_secs(30),
            retain_versions: 3,
            max_bundle: ByteSize::gib(2),
            tag: true,
        }
    }
}

impl RegistryConfig {
    /// Whether there is a registry.
    pub fn is_configured(&self) -> bool {
        !self.uri.is_empty() || self.dir.is_some()
    }

    pub(super) fn validate(&self) -> Check {
        let login = "registry.user, registry.password and registry.token say the rest";
        http_url("registry.uri", &self.uri, login)?;
        if let (false, Some(dir)) = (self.uri.is_empty(), &self.dir) {
            return Err(("registry.dir", format!("{} beside registry.uri; choose one", dir.display())));
        }
        either("registry.password_file", &self.password, self.password_file.as_ref(), "secret")?;
        either("registry.token_file", &self.token, self.token_file.as_ref(), "secret")?;
        at_least("registry.poll_interval", self.poll_interval, Duration::from_millis(100))?;
        at_least("registry.timeout", self.timeout, Duration::from_millis(100))?;
        within("registry.retain_versions", self.retain_versions, 1, 1000)?;
        if self.max_bundle < ByteSize::mib(1) {
            return Err(("registry.max_bundle", format!("{} is less than 1 MiB", self.max_bundle)));
        }
        Ok(())
    }
}

/// Summaries of predictions, sent to the registry.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MonitoringConfig {
    /// Whether they are sent.
    pub enabled: bool,
    /// Interval.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// The experiment that they belong to.
    pub experiment: String,
}

impl Default for MonitoringConfig {
    fn default() -> Self {
        Self { enabled: false, interval: Duration::from_secs(3600), experiment: "weir-monitoring".into() }
    }
}

impl MonitoringConfig {
    pub(super) fn validate(&self, has_registry: bool) -> Check {
        at_least("monitoring.interval", self.interval, Duration::from_secs(1))?;
        if self.enabled && !has_registry {
            return Err(("monitoring.enabled", "true, but there is no registry to report to".into()));
        }
        Ok(())
    }
}

/// Requests that change what is served.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// The bearer token of such requests; without one they are refused.
    pub token: Secret,
    /// File that holds the token, in place of `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl AdminConfig {
    pub(super) fn validate(&self) -> Check {
        either("admin.token_file", &self.token, self.token_file.as_ref(), "secret")
    }
}

/// A model's name: it becomes part of paths, URLs and labels.
pub(super) fn plain_name(key: &'static str, name: &str) -> Check {
    match name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        true => Ok(()),
        false => Err((key, format!("{name:?}: up to 64 letters, digits, '.', '_' and '-'"))),
    }
}
