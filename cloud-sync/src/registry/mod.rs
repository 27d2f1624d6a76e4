//! Registries of models: a directory, or MLflow's model registry.
//!
//! Both implementations guarantee, and the contract suite checks on both: a resolved version keeps its content; an
//! artifact is fetched whole, byte by byte as listed, or the call fails and the next resumes it; paths of artifacts
//! never lead out of the folder in which they are placed; a tag that was set is seen by the next resolve.

mod dir;
mod mlflow;
mod partial;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::SystemTime;

use async_trait::async_trait;

pub use dir::DirRegistry;
pub use mlflow::{MlflowConfig, MlflowRegistry};

use crate::check::CheckStep;
use crate::error::{Link, SyncError, SyncResult};

/// A reference to a model: `fish-classifier@champion` is the version that the alias currently names,
/// `fish-classifier/3` is always that version.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelReference {
    /// The registered model's name.
    pub name: String,
    /// Which of its versions.
    pub which: Which,
}

/// A version of a model, by alias or by number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Which {
    /// The version with this alias.
    Alias(String),
    /// This version.
    Version(String),
}

/// A text that is not a reference to a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a model reference: write <name>@<alias> or <name>/<version>{reason}")]
pub struct InvalidReference {
    text: String,
    reason: &'static str,
}

/// A version of a model in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelVersion {
    /// The registered model's name.
    pub name: String,
    /// The version; in MLflow an integer.
    pub version: String,
    /// Its current aliases.
    pub aliases: Vec<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Location of its artifacts, for logs; it contains no secret.
    pub source: String,
    /// When it was registered.
    pub created: Option<SystemTime>,
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Path relative to the version's folder, with slashes. As reported by the registry: it must be checked before it
    /// is used as a file name.
    pub path: String,
    /// Bytes, if the registry reports them.
    pub bytes: Option<u64>,
}

/// A report of a node about an interval, for monitoring a fleet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// The experiment of the reports.
    pub experiment: String,
    /// Name of the run.
    pub run: String,
    /// Start and end of the interval.
    pub time: Option<(SystemTime, SystemTime)>,
    /// Texts that do not change within a run.
    pub params: BTreeMap<String, String>,
    /// Numbers.
    pub metrics: BTreeMap<String, f64>,
    /// Tags by which runs are searched.
    pub tags: BTreeMap<String, String>,
}

/// A registry of models.
#[async_trait]
pub trait ModelRegistry: Send + Sync + fmt::Debug {
    /// Resolves `reference`; `None` when there is no such model, alias or version.
    ///
    /// # Errors
    /// When the registry is unavailable, or refuses.
    async fn resolve(&self, reference: &ModelReference) -> SyncResult<Option<ModelVersion>>;

    /// All versions of a model, newest first; empty when there is no such model.
    ///
    /// # Errors
    /// As [`ModelRegistry::resolve`].
    async fn versions(&self, name: &str) -> SyncResult<Vec<ModelVersion>>;

    /// The files of a version, at most `limit`; one more than that is an error.
    ///
    /// # Errors
    /// As [`ModelRegistry::resolve`]; permanent when there are more than `limit`.
    async fn artifacts(&self, version: &ModelVersion, limit: usize) -> SyncResult<Vec<Artifact>>;

    /// Fetches a file of a version to `to`, at most `limit` bytes. It resumes what an earlier call left there, if the
    /// file is still the same one and its source supports ranges (MLflow's own proxy does not). Until it is whole,
    /// there is a note beside it: `to` with the suffix `.partial~`.
    ///
    /// # Errors
    /// As [`ModelRegistry::resolve`]; permanent when the file is larger than `limit` or does not exist.
    async fn fetch(&self, version: &ModelVersion, path: &str, to: &Path, limit: u64) -> SyncResult<()>;

    /// Sets a tag of a version.
    ///
    /// # Errors
    /// As [`ModelRegistry::resolve`]; permanent when there is no such version.
    async fn tag(&self, version: &ModelVersion, key: &str, value: &str) -> SyncResult<()>;

    /// Stores a report.
    ///
    /// # Errors
    /// As [`ModelRegistry::resolve`].
    async fn report(&self, report: &Report) -> SyncResult<()>;

    /// Checks step by step whether the registry can be used.
    async fn check(&self) -> Vec<CheckStep>;
}

impl FromStr for ModelReference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let refuse = |reason| InvalidReference { text: text.chars().take(200).collect(), reason };
        let plain = |part: &str| {
            (1..=200).contains(&part.len())
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_alphanumeric() || "-_. ".contains(c))
        };
        let (name, which) = if let Some((name, alias)) = text.rsplit_once('@') {
            (name, Which::Alias(alias.to_owned()))
        } else if let Some((name, version)) = text.rsplit_once('/') {
            (name, Which::Version(version.to_owned()))
        } else {
            return Err(refuse(""));
        };
        let (Which::Alias(part) | Which::Version(part)) = &which;
        if !plain(name) || !plain(part) {
            return Err(refuse(", of letters, digits, '-', '_', '.' and spaces, none beginning with a dot"));
        }
        Ok(Self { name: name.to_owned(), which })
    }
}

impl fmt::Display for ModelReference {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::Alias(alias) => write!(to, "{}@{alias}", self.name),
            Which::Version(version) => write!(to, "{}/{version}", self.name),
        }
    }
}

/// Maximum length of an artifact's path, in bytes.
const MAX_PATH_BYTES: usize = 1000;

/// Refuses the path of an artifact unless it is that of a file inside the folder in which it is placed.
///
/// # Errors
/// Permanent, naming the path, when it may lead out of the folder or is not a file's.
fn check_path(link: Link, path: &str) -> SyncResult<()> {
    let reason = if path.is_empty() || path.len() > MAX_PATH_BYTES {
        "it must have 1 to 1000 bytes"
    } else if path.starts_with('/') {
        "it begins with a slash"
    } else if path.contains('\\') {
        "it has a backslash"
    } else if path.chars().any(char::is_control) {
        "it has a control character"
    } else if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "a part between slashes is empty, '.' or '..'"
    } else if path.split('/').any(|part| part.len() > 255) {
        "a part between slashes has more than 255 bytes"
    } else {
        return Ok(());
    };
    let path: String = path.chars().take(200).collect();
    Err(SyncError::permanent(link, format!("the artifact path {path:?} is refused: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_in_its_folder_or_is_refused_by_name() {
        for good in ["MLmodel", "model/model.onnx", "a b/ü.txt", "..a/b..", "weir~1"] {
            assert!(check_path(Link::Mlflow, good).is_ok(), "{good}");
        }
        let long = "x/".repeat(600);
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "a\0b", "a\nb", &long] {
            let error = check_path(Link::Mlflow, bad).unwrap_err();
            assert!(!error.is_transient(), "{bad}");
            let shown: String = bad.chars().take(200).collect();
            assert!(error.in_full().contains(&format!("{shown:?}")), "{}", error.in_full());
        }
    }
}
