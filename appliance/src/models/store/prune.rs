//! Old bundles go: their names first, then the index, then what only they needed.

use std::fs;

use cloud_sync::durable::sync_dir;

use super::disk::{self, GONE};
use super::index::Index;
use super::{BUNDLES, FILES, ModelStore, StoreError, StoredBundle};

impl ModelStore {
    /// Keeps the `keep` bundles of a model (`is_its` says which those are) that were taken in last and those in
    /// `protected` (digests). Returns the digests of the bundles that were removed.
    ///
    /// # Errors
    /// [`StoreError`] when something can't be removed; the next call, or the next start, goes on.
    pub fn prune(
        &self,
        is_its: impl Fn(&StoredBundle) -> bool,
        keep: usize,
        protected: &[&str],
    ) -> Result<Vec<String>, StoreError> {
        let _lock = self.lock()?;
        let old = self.list()?.into_iter().filter(is_its).skip(keep);
        let removed: Vec<String> =
            old.map(|bundle| bundle.digest).filter(|digest| !protected.contains(&digest.as_str())).collect();
        if removed.is_empty() {
            return Ok(removed);
        }
        let bundles = self.dir(BUNDLES);
        for digest in &removed {
            let (named, gone) = (bundles.join(digest), bundles.join(format!("{GONE}{digest}")));
            let renamed = disk::remove(&gone).and_then(|()| match fs::rename(&named, &gone) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            });
            renamed.map_err(StoreError::at("can't be removed", &named))?;
        }
        sync_dir(&bundles).map_err(StoreError::at("can't be written", &bundles))?;
        let mut index = Index::load(self.root())?;
        index.bundles.retain(|bundle| !removed.contains(&bundle.digest));
        index.save(self.root())?;
        self.drop_unused(&index)?;
        Ok(removed)
    }

    /// Removes what has no name in the store: bundles that are not yet or no longer in it, and content that no bundle
    /// of `index` has. Under the lock.
    pub(super) fn drop_unused(&self, index: &Index) -> Result<(), StoreError> {
        let bundles = self.dir(BUNDLES);
        for name in disk::names(&bundles)?.iter().filter(|name| name.starts_with('.')) {
            let leftover = bundles.join(name);
            disk::remove(&leftover).map_err(StoreError::at("can't be removed", &leftover))?;
        }
        let files = self.dir(FILES);
        for name in disk::names(&files)? {
            if !index.bundles.iter().any(|bundle| bundle.files.contains(&name)) {
                let unused = files.join(name);
                disk::remove(&unused).map_err(StoreError::at("can't be removed", &unused))?;
            }
        }
        Ok(())
    }

    /// Removes bundles that `index` does not know. Under the lock.
    pub(super) fn drop_unknown(&self, index: &Index) -> Result<(), StoreError> {
        for name in disk::names(&self.dir(BUNDLES))? {
            if index.get(&name).is_none() {
                let unknown = self.bundle_dir(&name);
                disk::remove(&unknown).map_err(StoreError::at("can't be removed", &unknown))?;
            }
        }
        Ok(())
    }
}
