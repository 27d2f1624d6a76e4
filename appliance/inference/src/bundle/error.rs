//! What can be wrong with a bundle; every message names the bundle's folder and the part that is wrong.

use std::path::PathBuf;

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// No bundle is configured and none of the usual places holds one.
    #[error(
        "no model bundle was found; looked at: {looked}. Remedy: name one in `model.bundle` or WEIR__MODEL__BUNDLE"
    )]
    NotFound {
        /// The folders that were tried.
        looked: String,
    },
    /// A file of the bundle can't be read.
    #[error("bundle {}: {file} can't be read: {source}", dir.display())]
    Read {
        /// The bundle's folder.
        dir: PathBuf,
        /// The file, relative to the folder.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// bundle.toml is not TOML, or not a manifest.
    #[error("bundle {}: bundle.toml is not a valid manifest: {source}", dir.display())]
    Manifest {
        /// The bundle's folder.
        dir: PathBuf,
        /// The parser's error, with line and column.
        source: Box<toml::de::Error>,
    },
    /// The manifest's parts contradict each other or name something impossible.
    #[error("bundle {}: {reason}", dir.display())]
    Invalid {
        /// The bundle's folder.
        dir: PathBuf,
        /// What is wrong, with the value.
        reason: String,
    },
    /// A file is not the one that the manifest was written for.
    #[error("bundle {}: {file} has sha256 {found}, bundle.toml says {expected}: the file is damaged or was changed", dir.display())]
    Digest {
        /// The bundle's folder.
        dir: PathBuf,
        /// The file, relative to the folder.
        file: String,
        /// Hex digest of what is there.
        found: String,
        /// Hex digest in the manifest.
        expected: String,
    },
    /// The bundle has no variant for what was asked.
    #[error("bundle {}: no variant for {asked}; it has {available}", dir.display())]
    NoVariant {
        /// The bundle's folder.
        dir: PathBuf,
        /// Device and precision that were asked for.
        asked: String,
        /// What the bundle has.
        available: String,
    },
}

impl BundleError {
    /// Whether the same can work later: the disk is at fault, not the bundle.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use std::io::ErrorKind::{InvalidData, NotFound};
        matches!(self, Self::Read { source, .. } if !matches!(source.kind(), NotFound | InvalidData))
    }
}
