//! What can go wrong in the store of models; every message names the folder or the file.

use std::io;
use std::path::{Path, PathBuf};

use inference::bundle::BundleError;

/// Why the store can't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, or a quota is used up.
    #[error(
        "no space is left for models in {}: {source}. Remedy: free some space there, or choose another disk with \
         data_dir", folder.display()
    )]
    Full {
        /// Where there is no space.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The disk would be full afterwards.
    #[error(
        "{} has {free} bytes free, the model needs {needed} more and {margin} are left for all else. Remedy: free some \
         space there, or choose another disk with data_dir", folder.display()
    )]
    NoRoom {
        /// Where there is too little space.
        folder: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that the model still needs.
        needed: u64,
        /// Bytes that are not touched.
        margin: u64,
    },
    /// A file or a folder of the store can't be read or written.
    #[error("{} {doing}: {source}", path.display())]
    Io {
        /// What was tried, in words.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The index was written by another version of Weir.
    #[error("{} has format {found}, this version of Weir reads format {known}: use the version that wrote it, or move \
             the folder away", path.display())]
    Format {
        /// The index.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The one that is known here.
        known: u32,
    },
    /// The index is no index.
    #[error("{} can't be understood: {source}. Remedy: `weir models list`, or a start, makes it anew", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// There is no such bundle.
    #[error("{} holds no bundle {digest}", root.display())]
    Unknown {
        /// The store.
        root: PathBuf,
        /// What was asked for.
        digest: String,
    },
    /// A bundle of the store, or one that was to become so, is not whole.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl StoreError {
    /// Makes an error of the system one of the store.
    pub(in crate::models) fn at<'a>(
        doing: &'static str,
        path: &'a Path,
    ) -> impl Fn(io::Error) -> Self + use<'a> {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
                Self::Full { folder: folder.into(), source }
            }
            _ => Self::Io { doing, path: path.into(), source },
        }
    }

    /// Whether the same can work later without another model: the disk is at fault, not the bundle.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Bundle(error) => error.is_transient(),
            _ => true,
        }
    }

    /// Whether there is no space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::NoRoom { .. })
    }
}
