//! From a registered version to a verified bundle in the store. Nothing that a registry says is trusted: paths, sizes,
//! counts and contents are bounded and checked, archives are not unpacked, and what fails leaves no trace in the store.

mod download;
mod error;
mod onnx;
mod paths;
mod weir;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloud_sync::registry::{ModelRegistry, ModelVersion};
use inference::bundle::MANIFEST;
use tokio::time::Instant;

use super::{ModelStore, Origin, Partial};
use crate::low_priority;
use download::{Download, Tell};
pub use error::PullError;
use paths::Listing;

/// How often a download of somebody else is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Bounds of a pull.
#[derive(Clone, Debug)]
pub struct PullLimits {
    /// Files that a version may list.
    pub max_files: usize,
    /// Bytes that are downloaded of a version.
    pub max_bytes: u64,
    /// Bytes that stay free on the disk.
    pub keep_free: u64,
    /// How long somebody else's download of the same version is waited for.
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

/// How far a pull is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The version's files are known.
    Listed {
        /// How many.
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
    /// All files are here and are taken into the store.
    Admitting,
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
    /// It was there before, and nothing was downloaded.
    pub known: bool,
}

impl Origin {
    /// Of a version as the registry has it.
    pub fn of(version: &ModelVersion) -> Self {
        let ModelVersion { source, name, version, .. } = version;
        Self { source: source.clone(), name: name.clone(), version: version.clone() }
    }
}

/// Makes sure that a registered version is in the store, whole and verified. A download that was broken off is gone on
/// with; one that can't be completed is removed.
///
/// # Errors
/// [`PullError`]; [`PullError::is_transient`] tells whether the version may be had later or is to be rejected.
pub async fn pull(
    registry: &dyn ModelRegistry,
    version: &ModelVersion,
    store: &ModelStore,
    limits: &PullLimits,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Pulled, PullError> {
    let origin = Origin::of(version);
    let until = Instant::now() + limits.wait;
    let partial = loop {
        if let Some(pulled) = known(store, &origin).await? {
            return Ok(pulled);
        }
        let (locked, of) = (store.clone(), origin.clone());
        if let Some(partial) = blocking(move || Ok(locked.partial(&of)?)).await? {
            break Arc::new(partial);
        }
        if Instant::now() > until {
            return Err(PullError::Busy);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    };
    // It may have been taken in between the look and the lock.
    let pulled = match known(store, &origin).await? {
        Some(pulled) => Ok(pulled),
        None => {
            let download = Download {
                registry,
                version,
                store,
                limits,
                tell: progress,
                partial: Arc::clone(&partial),
                listing: Listing::new(),
                bytes: 0,
            };
            match assemble(download).await {
                Ok(()) => admit(store, Arc::clone(&partial), origin, progress).await,
                Err(error) => Err(error),
            }
        }
    };
    // What was broken off may go on; a full disk hurts more than a download that begins anew.
    let keep = pulled.as_ref().is_err_and(|error| error.is_transient() && !error.is_disk_full());
    if !keep {
        let discarded = blocking(move || {
            partial.discard();
            Ok(())
        });
        // Broken off itself, it leaves what a later download begins with.
        let _ = discarded.await;
    }
    pulled
}

/// The bundle that the version is known to be, if it is still whole.
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
                tracing::warn!(%error, "a stored model is damaged; it is fetched again");
                Ok(None)
            }
        }
    })
    .await
}

async fn assemble(mut download: Download<'_>) -> Result<(), PullError> {
    let listed = download.registry.artifacts(download.version, download.limits.max_files).await;
    download.listing = paths::check_all(listed.map_err(PullError::Registry)?)?;
    (download.tell)(Progress::Listed { files: download.listing.len() });
    let partial = Arc::clone(&download.partial);
    let stage = blocking(move || Ok(partial.stage()?)).await?;
    match place_of(&download.listing, MANIFEST)? {
        Some(root) => weir::assemble(&mut download, &root, &stage).await,
        None => match place_of(&download.listing, onnx::MLMODEL)? {
            Some(root) => onnx::assemble(&mut download, &root, &stage).await,
            None => Err(nothing_in(&download.listing)),
        },
    }
}

/// The one folder with a file of this name, with a slash behind unless it is the root.
fn place_of(listing: &Listing, name: &str) -> Result<Option<String>, PullError> {
    let root = |path: &String| path.strip_suffix(name).map(str::to_owned);
    let mut places = listing.keys().filter_map(root).filter(|at| at.is_empty() || at.ends_with('/'));
    match (places.next(), places.next()) {
        (None, _) => Ok(None),
        (Some(one), None) => Ok(Some(one)),
        (Some(one), Some(other)) => {
            let found = format!("several models: {one}{name} and {other}{name}");
            Err(PullError::NoModel { found })
        }
    }
}

fn nothing_in(listing: &Listing) -> PullError {
    let archive = |path: &&String| {
        let path = path.to_lowercase();
        [".zip", ".tar", ".tar.gz", ".tgz"].iter().any(|end| path.ends_with(end))
    };
    if let Some(path) = listing.keys().find(archive) {
        return PullError::Archive { path: path.clone() };
    }
    let some: Vec<&str> = listing.keys().take(5).map(String::as_str).collect();
    let found = match some.is_empty() {
        true => "no files".into(),
        false => {
            format!("neither bundle.toml nor MLmodel, but {} files ({}, ...)", listing.len(), some.join(", "))
        }
    };
    PullError::NoModel { found }
}

async fn admit(
    store: &ModelStore,
    partial: Arc<Partial>,
    origin: Origin,
    tell: Tell<'_>,
) -> Result<Pulled, PullError> {
    tell(Progress::Admitting);
    let store = store.clone();
    // The partial goes along, so that it stays locked when whoever waits for the pull gives up.
    blocking(move || {
        let bundle = store.admit(&partial, &origin)?;
        let manifest = bundle.manifest();
        let (model, version) = (manifest.name.clone(), manifest.version.clone());
        Ok(Pulled { digest: bundle.digest().into(), model, version, known: false })
    })
    .await
}

/// Runs what waits for the disk, and computes digests, where it keeps nobody else waiting.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    let done = tokio::task::spawn_blocking(move || low_priority::run(work)).await;
    let done = done.map_err(|error| PullError::Interrupted(error.to_string()))?;
    done.map_err(|error| PullError::Interrupted(error.to_string()))?
}
