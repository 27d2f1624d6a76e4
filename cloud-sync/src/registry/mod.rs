//! Where models come from: a directory, or MLflow's model registry.
//!
//! What both implementations promise, and the contract suite checks on both: a version that was resolved keeps its
//! content; an artifact is fetched whole, byte by byte as listed, or the call fails and the next goes on where it
//! ended; paths of artifacts never lead out of the folder that they are put in; a tag that was set is seen by the
//! next resolve.

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

/// What to follow: `fish-classifier@champion` is whatever version the alias names now, `fish-classifier/3` is that
/// version for good.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelReference {
    /// The registered model's name.
    pub name: String,
    /// Which of its versions.
    pub which: Which,
}

/// Which version of a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Which {
    /// The one that this alias names.
    Alias(String),
    /// This one.
    Version(String),
}

/// A text that is no reference to a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no model: write <name>@<alias> or <name>/<version>{reason}")]
pub struct InvalidReference {
    text: String,
    reason: &'static str,
}

/// A version of a model as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelVersion {
    /// The registered model's name.
    pub name: String,
    /// The version; in MLflow a whole number.
    pub version: String,
    /// The aliases that name it now.
    pub aliases: Vec<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Where its artifacts lie, for people and logs; no secret is in it.
    pub source: String,
    /// When it was registered.
    pub created: Option<SystemTime>,
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Path relative to the version's folder, with slashes. As the registry says it: whoever makes a file of it
    /// checks it first.
    pub path: String,
    /// Bytes, where the registry says.
    pub bytes: Option<u64>,
}

/// What a node has seen in some time, for people who watch the fleet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// The experiment that collects such reports.
    pub experiment: String,
    /// Name of the run.
    pub run: String,
    /// Begin and end of the time that the report is about.
    pub time: Option<(SystemTime, SystemTime)>,
    /// Texts that do not change within a run.
    pub params: BTreeMap<String, String>,
    /// Numbers.
    pub metrics: BTreeMap<String, f64>,
    /// What runs are looked for by.
    pub tags: BTreeMap<String, String>,
}

/// A registry of models.
#[async_trait]
pub trait ModelRegistry: Send + Sync + fmt::Debug {
    /// What `reference` names now; `None` when there is no such model, alias or version.
    ///
    /// # Errors
    /// When the registry is out of reach, or refuses.
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

    /// Fetches a file of a version to `to`, at most `limit` bytes. What an earlier call left there is gone on with,
    /// as long as the file is still the same one and whoever has it can begin in the middle (MLflow's own proxy cannot).
    /// Until it is whole, a note lies beside it: `to` with `.partial~` at its end.
    ///
    /// # Errors
    /// As [`ModelRegistry::resolve`]; permanent when the file is larger than `limit` or is not there.
    async fn fetch(&self, version: &ModelVersion, path: &str, to: &Path, limit: u64) -> SyncResult<()>;

    /// Sets a tag of a version.
    ///
    /// # Errors
    /// As [`ModelRegistry::resolve`]; permanent when there is no such version.
    async fn tag(&self, version: &ModelVersion, key: &str, value: &str) -> SyncResult<()>;

    /// Keeps a report.
    ///
    /// # Errors
    /// As [`ModelRegistry::resolve`].
    async fn report(&self, report: &Report) -> SyncResult<()>;

    /// Tries out whether the registry can be used, step by step.
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

/// Longest path of an artifact, in bytes.
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
    Err(SyncError::permanent(link, format!("the artifact path {path:?} is not taken: {reason}")))
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
