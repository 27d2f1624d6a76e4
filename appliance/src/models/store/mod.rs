//! Models on disk, each stored once: `files/<sha256>` holds the content, `bundles/<digest>/` are folders of links to it.
//!
//! What is always true, also after a power cut between any two steps: a folder in `bundles/` without a leading dot is
//! whole and verified, as it got its name only after everything in it was on disk; `index.json` is replaced in one step;
//! what is neither in the index nor reachable from it is a leftover, which the next start takes in or removes.
//! Several processes may use one store: changes are made under a lock, and a download has a lock of its own.

mod admit;
mod disk;
mod error;
mod index;
mod partial;
mod prune;
mod tidy;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloud_sync::durable;
pub(in crate::models) use disk::{link, open_regular};
pub use error::StoreError;
use index::Index;
pub use index::{Origin, StoredBundle};
use inference::bundle::{Bundle, BundleError, MANIFEST};
pub use partial::Partial;

const FILES: &str = "files";
const BUNDLES: &str = "bundles";
const PARTIAL: &str = "partial";

/// The store. Cheap to clone; every call blocks on the disk.
#[derive(Clone, Debug)]
pub struct ModelStore {
    root: Arc<Path>,
}

impl ModelStore {
    /// Opens the store in `root`, which is made where it is missing, and sets right what a crash has left.
    ///
    /// # Errors
    /// [`StoreError`], naming the folder: it can't be used, or another version of Weir has written the index.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for dir in [FILES, BUNDLES, PARTIAL].map(|name| root.join(name)) {
            durable::create_dir_all(&dir).map_err(StoreError::at("can't be made", &dir))?;
        }
        let store = Self { root: root.into() };
        store.tidy()?;
        Ok(store)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The bundle with this digest, every file of it verified.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or [`StoreError::Bundle`] when it was damaged since it was taken in.
    pub fn bundle(&self, digest: &str) -> Result<Bundle, StoreError> {
        let dir = self.bundle_dir(digest);
        let named_well = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        if !named_well || !dir.is_dir() {
            return Err(StoreError::Unknown { root: self.root.to_path_buf(), digest: digest.into() });
        }
        let bundle = Bundle::open(&dir)?;
        if bundle.digest() == digest {
            return Ok(bundle);
        }
        let (found, expected) = (bundle.digest().into(), digest.into());
        Err(BundleError::Digest { dir, file: MANIFEST.into(), found, expected }.into())
    }

    /// All bundles, the one that was taken in last first.
    ///
    /// # Errors
    /// [`StoreError`] when the index can't be read.
    pub fn list(&self) -> Result<Vec<StoredBundle>, StoreError> {
        let mut bundles = Index::load(&self.root)?.bundles;
        bundles.sort_by_key(|bundle| std::cmp::Reverse(bundle.admitted));
        Ok(bundles)
    }

    /// The bundle that a registered version turned out to be, when it was taken in before. It is not verified here.
    ///
    /// # Errors
    /// As [`ModelStore::list`].
    pub fn find(&self, origin: &Origin) -> Result<Option<StoredBundle>, StoreError> {
        Ok(self.list()?.into_iter().find(|bundle| bundle.origins.contains(origin)))
    }

    /// Looks whether `needed` more bytes leave `margin` bytes free.
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

    /// Waits until nobody else changes the store; it is ours until the file is dropped.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.root.join("lock");
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        opened.and_then(|file| file.lock().map(|()| file)).map_err(StoreError::at("can't be locked", &path))
    }
}
