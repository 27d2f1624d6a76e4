//! `index.json`: which bundles the store holds and where each came from. The bundles themselves are authoritative; a lost index
//! is rebuilt from them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cloud_sync::durable;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::disk::NEW;

/// The only format that this version reads and writes.
const FORMAT: u32 = 1;

/// A version of a model in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// Where the registry says that the artifacts are. It distinguishes versions of two registries.
    pub source: String,
    /// The registered model's name.
    pub name: String,
    /// The version in the registry.
    pub version: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}/{}", self.name, self.version)
    }
}

/// A bundle in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBundle {
    /// Hex SHA-256 of its manifest.
    pub digest: String,
    /// The model's name in the manifest.
    pub model: String,
    /// The model's version in the manifest.
    pub version: String,
    /// Every registered version with this bundle; none when the index was lost.
    pub origins: Vec<Origin>,
    /// When it was imported.
    #[serde(with = "humantime_serde")]
    pub admitted: SystemTime,
    /// Bytes of its files.
    pub bytes: u64,
    /// Hex SHA-256 of its files.
    pub files: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    format: u32,
    pub(super) bundles: Vec<StoredBundle>,
}

impl Index {
    pub(super) fn new(bundles: Vec<StoredBundle>) -> Self {
        Self { format: FORMAT, bundles }
    }

    pub(super) fn load(root: &Path) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let path = path(root);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(Vec::new())),
            Err(error) => return Err(StoreError::at("can't be read", &path)(error)),
        };
        let not_parsed = |source| StoreError::Index { path: path.clone(), source };
        match serde_json::from_slice::<Head>(&bytes).map_err(not_parsed)?.format {
            FORMAT => serde_json::from_slice(&bytes).map_err(not_parsed),
            found => Err(StoreError::Format { path: path.clone(), found, known: FORMAT }),
        }
    }

    /// Replaces the file. Under the store's lock.
    pub(super) fn save(&self, root: &Path) -> Result<(), StoreError> {
        let path = path(root);
        let written = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        written
            .and_then(|bytes| durable::replace(&path, &format!("{NEW}index"), &bytes))
            .map_err(StoreError::at("can't be written", &path))
    }

    pub(super) fn get(&self, digest: &str) -> Option<&StoredBundle> {
        self.bundles.iter().find(|bundle| bundle.digest == digest)
    }
}

pub(super) fn path(root: &Path) -> PathBuf {
    root.join("index.json")
}
