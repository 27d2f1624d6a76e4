//! Models on disk, each stored once: `files/<sha256>` holds the content, `bundles/<digest>/` are folders of links to it.
//!
//! Invariants, also after a power cut between any two steps: a folder in `bundles/` without a leading dot is
//! complete and verified, as it got its name only after everything in it was on disk; `index.json` is replaced in one step;
//! what is neither in the index nor reachable from it is a leftover, which the next start imports or removes.
//! Several processes may use one store: changes are made under a lock, and a download has a lock of its own.

mod cleanup;
mod disk;
mod import;
mod index;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloud_sync::durable;
pub use disk::StagingDir;
pub(in crate::models) use disk::{link, open_regular};
use index::Index;
pub use index::{Origin, StoredBundle};
use inference::bundle::{Bundle, BundleError, MANIFEST};

const FILES: &str = "files";
const BUNDLES: &str = "bundles";
const PARTIAL: &str = "partial";

/// The store. Cheap to clone; every call blocks on the disk.
#[derive(Clone, Debug)]
pub struct ModelStore {
    root: Arc<Path>,
}

impl ModelStore {
    /// Opens the store in `root`, which is created where it is missing, and recovers from a crash.
    ///
    /// # Errors
    /// [`StoreError`], naming the folder: it can't be used, or another version of Weir has written the index.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for dir in [FILES, BUNDLES, PARTIAL].map(|name| root.join(name)) {
            durable::create_dir_all(&dir).map_err(StoreError::at("can't be made", &dir))?;
        }
        let store = Self { root: root.into() };
        store.recover()?;
        Ok(store)
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The bundle with this digest, every file of it verified.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or [`StoreError::Bundle`] when it was damaged since it was imported.
    pub fn bundle(&self, digest: &str) -> Result<Bundle, StoreError> {
        let dir = self.bundle_dir(digest);
        let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_digest || !dir.is_dir() {
            return Err(StoreError::Unknown { root: self.root.to_path_buf(), digest: digest.into() });
        }
        let bundle = Bundle::open(&dir)?;
        if bundle.digest() == digest {
            return Ok(bundle);
        }
        let (found, expected) = (bundle.digest().into(), digest.into());
        Err(BundleError::Digest { dir, file: MANIFEST.into(), found, expected }.into())
    }

    /// All bundles, the one that was imported last first.
    ///
    /// # Errors
    /// [`StoreError`] when the index can't be read.
    pub fn list(&self) -> Result<Vec<StoredBundle>, StoreError> {
        let mut bundles = Index::load(&self.root)?.bundles;
        bundles.sort_by_key(|bundle| std::cmp::Reverse(bundle.admitted));
        Ok(bundles)
    }

    /// The bundle of a registered version, if it was imported before. It is not verified here.
    ///
    /// # Errors
    /// As [`ModelStore::list`].
    pub fn find(&self, origin: &Origin) -> Result<Option<StoredBundle>, StoreError> {
        Ok(self.list()?.into_iter().find(|bundle| bundle.origins.contains(origin)))
    }

    /// Checks whether `needed` more bytes leave `margin` bytes free.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] with the numbers and the remedy.
    pub fn check_room(&self, needed: u64, margin: u64) -> Result<(), StoreError> {
        let free = disk::free_bytes(&self.root).map_err(StoreError::at("can't be measured", &self.root))?;
        if needed.saturating_add(margin) <= free {
            return Ok(());
        }
        Err(StoreError::NoRoom { folder: self.root.to_path_buf(), free, needed, margin })
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn bundle_dir(&self, digest: &str) -> PathBuf {
        self.root.join(BUNDLES).join(digest)
    }

    /// Waits for the store's lock, which is held until the file is dropped.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.root.join("lock");
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        opened.and_then(|file| file.lock().map(|()| file)).map_err(StoreError::at("can't be locked", &path))
    }
}

/// What can go wrong in the store of models; every message names the folder or the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, or a quota is used up.
    #[error(
        "no space is left for models in {}: {source}. Remedy: free some space there, or choose another disk with \
         data_dir", folder.display()
    )]
    Full {
        /// The folder on that disk.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The model does not fit on the disk.
    #[error(
        "{} has {free} bytes free, the model needs {needed} more and {margin} are left for all else. Remedy: free some \
         space there, or choose another disk with data_dir", folder.display()
    )]
    NoRoom {
        /// The folder on that disk.
        folder: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that the model still needs.
        needed: u64,
        /// Bytes that stay free.
        margin: u64,
    },
    /// A file or a folder of the store can't be read or written.
    #[error("{} {doing}: {source}", path.display())]
    Io {
        /// What failed: `can't be read`.
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
        /// The format that this version reads.
        known: u32,
    },
    /// The index can't be parsed.
    #[error("{} can't be understood: {source}. Remedy: `weir models list`, or a start, makes it anew", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The store holds no such bundle.
    #[error("{} holds no bundle {digest}", root.display())]
    Unknown {
        /// The store.
        root: PathBuf,
        /// The digest that was asked for.
        digest: String,
    },
    /// A bundle in the store, or one to be imported, is damaged or incomplete.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl StoreError {
    /// Converts an I/O error at `path`.
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

    /// Whether another attempt with the same model can succeed: the disk is at fault, not the bundle.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Bundle(error) => error.is_transient(),
            _ => true,
        }
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::NoRoom { .. })
    }
}
