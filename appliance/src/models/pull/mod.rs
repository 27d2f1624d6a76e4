//! From a registered version to a verified bundle in the store. Nothing that a registry says is trusted: paths, sizes,
//! counts and contents are bounded and checked, archives are not unpacked, and a failed pull leaves nothing in the store.

mod assemble;
mod download;
mod paths;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::error::SyncError;
use cloud_sync::registry::{ModelRegistry, ModelVersion};
use inference::engine::EngineError;
use tokio::time::Instant;

use super::{ModelStore, Origin, StagingDir, StoreError};
use crate::low_priority;
use download::{Download, OnProgress};
use paths::Listing;

/// How often to check whether another process's download of the version is done.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Limits of a pull.
#[derive(Clone, Debug)]
pub struct PullLimits {
    /// Files that a version may list.
    pub max_files: usize,
    /// Bytes that are downloaded of a version.
    pub max_bytes: u64,
    /// Bytes that stay free on the disk.
    pub keep_free: u64,
    /// How long to wait for another process's download of the same version.
    pub wait: Duration,
    /// The libonnxruntime that this process has loaded: the graphs of plain ONNX models are read with it.
    pub onnxruntime: Option<PathBuf>,
}

impl Default for PullLimits {
    fn default() -> Self {
        Self {
            max_files: 1000,
            max_bytes: 4 << 30,
            keep_free: 64 << 20,
            wait: Duration::from_secs(600),
            onnxruntime: None,
        }
    }
}

/// Progress of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The version's files are known.
    Listed {
        /// Number of files.
        files: usize,
    },
    /// A file is here and verified.
    File {
        /// Its path in the version.
        path: String,
        /// Its bytes.
        bytes: u64,
        /// Bytes of all files until now.
        so_far: u64,
    },
    /// All files are here and are imported into the store.
    Importing,
}

/// A version that is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Digest of the bundle; [`ModelStore::bundle`] opens it.
    pub digest: String,
    /// The model's name in the manifest.
    pub model: String,
    /// The model's version in the manifest.
    pub version: String,
    /// Whether it was there before, and nothing was downloaded.
    pub known: bool,
}

/// Why a registered version did not become a bundle in the store.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry is unreachable, or refuses.
    #[error("{}", .0.in_full())]
    Registry(#[source] SyncError),
    /// The store can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another process was still downloading this version after `PullLimits::wait`.
    #[error("another process is downloading this version, and was not done in time")]
    Busy,
    /// The work was interrupted since this process ends.
    #[error("interrupted: {0}")]
    Interrupted(String),
    /// The engine that reads plain models can't be loaded.
    #[error(transparent)]
    Engine(EngineError),
    /// A path that must not become one on this disk.
    #[error("the version holds a file {path:?}, which {reason}. Remedy: log the model again without it")]
    Path {
        /// As the registry says it.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More bytes than allowed.
    #[error("the version has {bytes} bytes to download, the limit is {limit}")]
    TooLarge {
        /// Bytes as listed.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// An archive where a folder was expected.
    #[error(
        "the version holds {path:?} and no model: archives are not unpacked. Remedy: log the folder itself, as in \
         mlflow.log_artifacts(DIR, \"model\")"
    )]
    Archive {
        /// The archive.
        path: String,
    },
    /// Neither bundle nor model, or several.
    #[error(
        "the version holds {found}. Remedy: log one Weir bundle (a folder with bundle.toml) or one model with \
             mlflow.onnx.log_model"
    )]
    NoModel {
        /// What it holds instead.
        found: String,
    },
    /// A file is needed that the version does not hold.
    #[error("{file} is named by {by}, but the version does not hold it")]
    Absent {
        /// The files.
        file: String,
        /// What names them.
        by: &'static str,
    },
    /// The bundle's manifest is refused.
    #[error("bundle.toml: {0}")]
    Manifest(String),
    /// A plain model without all that Weir has to know of it.
    #[error("this ONNX model can't be served yet; it lacks: {}", .0.join("; "))]
    Incomplete(Vec<String>),
    /// A plain model that is no classifier as its tags or sidecar describe it.
    #[error("this ONNX model can't be served: {0}")]
    Unfit(String),
    /// A file has another digest than expected.
    #[error("{file} has sha256 {found}, expected was {expected}: it is damaged or was changed")]
    Digest {
        /// The file.
        file: String,
        /// Hex digest of what was fetched.
        found: String,
        /// Hex digest that was expected.
        expected: String,
    },
    /// A file has another length than the registry lists.
    #[error("{file} has {found} bytes, the registry lists {listed}")]
    Size {
        /// The file.
        file: String,
        /// Bytes that were received.
        found: u64,
        /// Bytes that were listed.
        listed: u64,
    },
}

impl PullError {
    /// Whether another attempt can succeed. Otherwise the version is to be rejected.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            // A link that needs the operator says nothing about the version.
            Self::Registry(error) => error.is_transient() || error.is_of_the_link(),
            Self::Store(error) => error.is_transient(),
            Self::Busy | Self::Interrupted(_) | Self::Engine(_) => true,
            _ => false,
        }
    }

    /// Whether this machine's disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Store(error) => error.is_full(),
            Self::Registry(error) => error.is_disk_full(),
            _ => false,
        }
    }
}

impl Origin {
    /// The origin of a registered version.
    pub fn of(version: &ModelVersion) -> Self {
        let ModelVersion { source, name, version, .. } = version;
        Self { source: source.clone(), name: name.clone(), version: version.clone() }
    }
}

/// Ensures that a registered version is in the store, complete and verified. An interrupted download is resumed; one that
/// can't be completed is removed.
///
/// # Errors
/// [`PullError`]; [`PullError::is_transient`] says whether another attempt can succeed or the version is to be rejected.
pub async fn pull(
    registry: &dyn ModelRegistry,
    version: &ModelVersion,
    store: &ModelStore,
    limits: &PullLimits,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Pulled, PullError> {
    let origin = Origin::of(version);
    let until = Instant::now() + limits.wait;
    let staging = loop {
        if let Some(pulled) = known(store, &origin).await? {
            return Ok(pulled);
        }
        let (locked, of) = (store.clone(), origin.clone());
        if let Some(staging) = blocking(move || Ok(locked.staging_dir(&of)?)).await? {
            break Arc::new(staging);
        }
        if Instant::now() > until {
            return Err(PullError::Busy);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    };
    // It may have been imported between the check and the lock.
    let pulled = match known(store, &origin).await? {
        Some(pulled) => Ok(pulled),
        None => {
            let download = Download {
                registry,
                version,
                store,
                limits,
                progress,
                staging: Arc::clone(&staging),
                listing: Listing::new(),
                bytes: 0,
            };
            match assemble::assemble(download).await {
                Ok(()) => import(store, Arc::clone(&staging), origin, progress).await,
                Err(error) => Err(error),
            }
        }
    };
    // An interrupted download can be resumed; a full disk hurts more than a download that starts again.
    let keep = pulled.as_ref().is_err_and(|error| error.is_transient() && !error.is_disk_full());
    if !keep {
        let discarded = blocking(move || {
            staging.discard();
            Ok(())
        });
        // Interrupted itself, it leaves what a later download starts with.
        let _ = discarded.await;
    }
    pulled
}

/// The bundle of the version, if it is in the store and intact.
async fn known(store: &ModelStore, origin: &Origin) -> Result<Option<Pulled>, PullError> {
    let (store, origin) = (store.clone(), origin.clone());
    blocking(move || {
        let Some(found) = store.find(&origin)? else { return Ok(None) };
        match store.bundle(&found.digest) {
            Ok(_) => {
                let (digest, model, version) = (found.digest, found.model, found.version);
                Ok(Some(Pulled { digest, model, version, known: true }))
            }
            Err(error) => {
                tracing::warn!(%error, "a stored model is damaged; fetching it again");
                Ok(None)
            }
        }
    })
    .await
}

async fn import(
    store: &ModelStore,
    staging: Arc<StagingDir>,
    origin: Origin,
    progress: OnProgress<'_>,
) -> Result<Pulled, PullError> {
    progress(Progress::Importing);
    let store = store.clone();
    // The staging folder is moved along, so that it stays locked when the pull is cancelled.
    blocking(move || {
        let bundle = store.import(&staging, &origin)?;
        let manifest = bundle.manifest();
        let (model, version) = (manifest.name.clone(), manifest.version.clone());
        Ok(Pulled { digest: bundle.digest().into(), model, version, known: false })
    })
    .await
}

/// Runs work on the disk, and digests, on a blocking thread of low priority.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    let done = tokio::task::spawn_blocking(move || low_priority::run(work)).await;
    let done = done.map_err(|error| PullError::Interrupted(error.to_string()))?;
    done.map_err(|error| PullError::Interrupted(error.to_string()))?
}
