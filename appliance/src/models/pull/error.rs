//! Why a registered version did not become a bundle in the store, and whether trying again can help.

use cloud_sync::error::SyncError;
use inference::engine::EngineError;

use crate::models::StoreError;

/// Why a version can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry is away, or refuses.
    #[error("{}", .0.in_full())]
    Registry(#[source] SyncError),
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else has been downloading this version for longer than was waited.
    #[error("another process is downloading this version, and was not done in time")]
    Busy,
    /// The work was broken off because this process ends.
    #[error("broken off: {0}")]
    Interrupted(String),
    /// The engine that reads plain models is not there.
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
    /// More than is taken.
    #[error("the version has {bytes} bytes to download, the limit is {limit}")]
    TooLarge {
        /// Bytes as listed.
        bytes: u64,
        /// The bound.
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
        /// What is there instead.
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
    /// A file is not the one that was promised.
    #[error("{file} has sha256 {found}, expected was {expected}: it is damaged or was changed")]
    Digest {
        /// The file.
        file: String,
        /// Hex digest of what was fetched.
        found: String,
        /// Hex digest that was promised.
        expected: String,
    },
    /// A file has not the length that the registry lists.
    #[error("{file} has {found} bytes, the registry lists {listed}")]
    Size {
        /// The file.
        file: String,
        /// Bytes that came.
        found: u64,
        /// Bytes that were listed.
        listed: u64,
    },
}

impl PullError {
    /// Whether the same version can be had later. Otherwise it is to be rejected: it will not get better.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            // A link that an operator has to mend says nothing about the version.
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
