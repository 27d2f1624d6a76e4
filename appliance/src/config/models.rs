//! The configurations of models: which are served, where they come from, how a new version is rolled out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use cloud_sync::registry::ModelReference;
use cloud_sync::secret::Secret;
use serde::{Deserialize, Serialize};
use url::Url;

use super::Config;

/// A model that is served.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Its name, as in `?model=`; the bundle's own name otherwise. Only for the default model: the others are named by
    /// their tables.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Folder of the bundle that is served until a version of `follow` is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<PathBuf>,
    /// What to follow in the registry: `fish-classifier@champion`, or `fish-classifier/3` for good.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub follow: String,
}

/// Where versions of models come from. Without `uri` and `dir` there is no registry.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// The MLflow server, such as `http://mlflow:5000`.
    pub uri: String,
    /// A folder of models in place of a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// The user, for servers that ask for one.
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
    /// How often the registry is asked; up to a fifth more or less, so that a fleet does not ask at once.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// Longest time for one answer of the server, or for a pause in a download.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Versions of each model that stay on disk.
    pub retain_versions: usize,
    /// Largest version, all files together.
    pub max_bundle: ByteSize,
    /// Whether versions are tagged with what this box does with them (`weir.<node>.state`).
    pub tag: bool,
}

/// How a new version of a model comes to serve. With everything at 0 it serves as soon as its golden cases are right.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Images that the new version computes in the shadow of the one that serves, before it answers anybody; 0 for none.
    pub shadow_images: u64,
    /// How long it is in the shadow at least; 0s for no such bound.
    #[serde(with = "humantime_serde")]
    pub shadow_time: Duration,
    /// Percentage of cameras that the new version answers at first; 0 for none.
    pub canary: f64,
    /// Images that it answers so at least.
    pub canary_images: u64,
    /// How long it answers so at least.
    #[serde(with = "humantime_serde")]
    pub canary_time: Duration,
    /// Longest time that shadow or canary may last; what has been seen by then decides, and a version that has computed
    /// nothing stays on trial. 0s for no bound.
    #[serde(with = "humantime_serde")]
    pub max_trial_time: Duration,
    /// How long a promoted version is held against the same limits, and rolled back where it passes one; 0s for never.
    #[serde(with = "humantime_serde")]
    pub monitor_time: Duration,
    /// Share of images that the new version may fail on, 0 to 1.
    pub max_error_rate: f64,
    /// How much longer than the one that serves it may compute, at the 95th percentile.
    pub max_latency_ratio: f64,
    /// Share of images with another best label than the one that serves says, 0 to 1.
    pub max_disagreement: f64,
    /// How long the version before stays loaded, so that the way back takes no time.
    #[serde(with = "humantime_serde")]
    pub keep_previous_loaded: Duration,
}

/// A summary of what this box sees, sent to the registry.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MonitoringConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// How often.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// The experiment that collects them.
    pub experiment: String,
}

/// Who may change what is served.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// The token that requests to change something must bear; without one they are refused.
    pub token: Secret,
    /// File that holds the token, in place of `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
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

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            shadow_images: 0,
            shadow_time: Duration::ZERO,
            canary: 0.0,
            canary_images: 100,
            canary_time: Duration::from_secs(300),
            max_trial_time: Duration::from_secs(24 * 3600),
            monitor_time: Duration::from_secs(600),
            max_error_rate: 0.01,
            max_latency_ratio: 2.0,
            max_disagreement: 0.2,
            keep_previous_loaded: Duration::from_secs(600),
        }
    }
}

impl Default for MonitoringConfig {
    fn default() -> Self {
        Self { enabled: false, interval: Duration::from_secs(3600), experiment: "weir-monitoring".into() }
    }
}

impl RegistryConfig {
    /// Whether there is a registry.
    pub fn is_configured(&self) -> bool {
        !self.uri.is_empty() || self.dir.is_some()
    }
}

impl Config {
    /// All models that are served but the default one, by name.
    pub fn other_models(&self) -> &BTreeMap<String, ModelConfig> {
        &self.models
    }

    /// What no single key of models can say.
    ///
    /// # Errors
    /// The key, and a sentence that names the value and its bound.
    pub(super) fn validate_models(&self) -> Result<(), (&'static str, String)> {
        let name_is_plain = |name: &str| {
            name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !name_is_plain(&self.model.name) {
            return Err((
                "model.name",
                format!("{:?}: up to 64 letters, digits, '.', '_' and '-'", self.model.name),
            ));
        }
        for (name, model) in std::iter::once((&self.model.name, &self.model)).chain(&self.models) {
            let key = if std::ptr::eq(model, &raw const self.model) { "model.follow" } else { "models" };
            if !name_is_plain(name) {
                return Err((key, format!("{name:?}: up to 64 letters, digits, '.', '_' and '-'")));
            }
            if !model.follow.is_empty() {
                ModelReference::from_str(&model.follow).map_err(|e| (key, e.to_string()))?;
                if !self.registry.is_configured() {
                    let what = format!(
                        "{:?}, but there is no registry; set registry.uri or registry.dir",
                        model.follow
                    );
                    return Err((key, what));
                }
            }
        }
        for (name, model) in &self.models {
            if model.follow.is_empty() && model.bundle.is_none() {
                return Err(("models", format!("[models.{name}] has neither bundle nor follow")));
            }
            if !model.name.is_empty() {
                return Err(("models", format!("[models.{name}] is its name; it takes no key called name")));
            }
        }
        self.validate_registry()?;
        self.validate_rollout()
    }

    fn validate_registry(&self) -> Result<(), (&'static str, String)> {
        let registry = &self.registry;
        if registry.uri.contains(['@', '?', '#']) {
            let what = "(hidden): scheme, host, port and path only; registry.user, registry.password and \
                        registry.token say the rest";
            return Err(("registry.uri", what.into()));
        }
        let scheme = Url::parse(&registry.uri).map(|url| url.scheme().to_owned());
        if !registry.uri.is_empty() && !matches!(scheme.as_deref(), Ok("http" | "https")) {
            return Err(("registry.uri", format!("{:?} is no http or https URL", registry.uri)));
        }
        if let (false, Some(dir)) = (registry.uri.is_empty(), &registry.dir) {
            return Err(("registry.dir", format!("{} beside registry.uri; choose one", dir.display())));
        }
        let secrets = [
            ("registry.password_file", &registry.password, &registry.password_file),
            ("registry.token_file", &registry.token, &registry.token_file),
            ("admin.token_file", &self.admin.token, &self.admin.token_file),
        ];
        for (key, secret, file) in secrets {
            if file.is_some() && !secret.is_empty() {
                return Err((key, "set beside the secret itself; choose one".into()));
            }
        }
        let least = |key, value: Duration, least: Duration| match value < least {
            true => Err((key, format!("{} is less than {}", show(value), show(least)))),
            false => Ok(()),
        };
        least("registry.poll_interval", registry.poll_interval, Duration::from_millis(100))?;
        least("registry.timeout", registry.timeout, Duration::from_millis(100))?;
        least("monitoring.interval", self.monitoring.interval, Duration::from_secs(1))?;
        if !(1..=1000).contains(&registry.retain_versions) {
            return Err((
                "registry.retain_versions",
                format!("{} is not between 1 and 1000", registry.retain_versions),
            ));
        }
        if registry.max_bundle < ByteSize::mib(1) {
            return Err(("registry.max_bundle", format!("{} is less than 1 MiB", registry.max_bundle)));
        }
        if self.monitoring.enabled && !registry.is_configured() {
            return Err(("monitoring.enabled", "true, but there is no registry to report to".into()));
        }
        Ok(())
    }

    fn validate_rollout(&self) -> Result<(), (&'static str, String)> {
        let rollout = &self.rollout;
        for (key, value, high) in [
            ("rollout.canary", rollout.canary, 100.0),
            ("rollout.max_error_rate", rollout.max_error_rate, 1.0),
            ("rollout.max_disagreement", rollout.max_disagreement, 1.0),
        ] {
            if !(0.0..=high).contains(&value) {
                return Err((key, format!("{value} is not between 0 and {high}")));
            }
        }
        if !(rollout.max_latency_ratio >= 1.0 && rollout.max_latency_ratio.is_finite()) {
            return Err((
                "rollout.max_latency_ratio",
                format!("{} is not 1 or more", rollout.max_latency_ratio),
            ));
        }
        Ok(())
    }
}

fn show(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(time)
}
