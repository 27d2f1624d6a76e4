//! Removal of old bundles, and recovery at the start: leftovers of a crash are removed, complete bundles that the index does
//! not have are added to it.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use cloud_sync::durable::sync_dir;

use super::disk::{self, GONE, NEW, lock_dir};
use super::index::{self, Index};
use super::{BUNDLES, FILES, ModelStore, PARTIAL, StoreError, StoredBundle, import};

/// A download that nobody has resumed for this long is removed.
const ABANDONED_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

impl ModelStore {
    /// Keeps the `keep` bundles of a model (`is_its` says which those are) that were imported last and those in
    /// `protected` (digests). Returns the digests of the bundles that were removed: their names are removed first, then their
    /// entries in the index, then content that only they had.
    ///
    /// # Errors
    /// [`StoreError`] when something can't be removed; the next call, or the next start, continues.
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

    /// Removes leftovers: bundles that are not yet or no longer in the store, and content that no bundle
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

    /// Removes bundles that `index` does not have. Under the lock.
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

impl ModelStore {
    pub(super) fn recover(&self) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let before = match Index::load(self.root()) {
            Ok(index) => index,
            Err(StoreError::Index { path, source }) => {
                let aside = path.with_extension("json.damaged");
                tracing::warn!(path = %path.display(), aside = %aside.display(), error = %source,
                    "the index of models is damaged; it is renamed and rebuilt");
                fs::rename(&path, &aside).map_err(StoreError::at("can't be renamed", &path))?;
                Index::new(Vec::new())
            }
            Err(error) => return Err(error),
        };
        let mut bundles = Vec::new();
        for name in disk::names(&self.dir(BUNDLES))?.iter().filter(|name| !name.starts_with('.')) {
            if let Some(known) = before.get(name) {
                bundles.push(known.clone());
            } else if let Ok(bundle) = self.bundle(name) {
                tracing::warn!(digest = name, "adding a bundle that the index of models does not have");
                bundles.push(import::entry_of(&bundle)?);
            }
        }
        bundles.sort_by_key(|bundle| before.bundles.iter().position(|b| b.digest == bundle.digest));
        let after = Index::new(bundles);
        if after != before || !index::path(self.root()).exists() {
            after.save(self.root())?;
        }
        self.drop_unknown(&after)?;
        self.drop_unused(&after)?;
        self.drop_temporary()?;
        self.drop_abandoned()
    }

    /// Removes index files that did not get their name.
    fn drop_temporary(&self) -> Result<(), StoreError> {
        for name in disk::names(self.root())?.iter().filter(|name| name.starts_with(NEW)) {
            let path = self.dir(name);
            disk::remove(&path).map_err(StoreError::at("can't be removed", &path))?;
        }
        Ok(())
    }

    fn drop_abandoned(&self) -> Result<(), StoreError> {
        let partial = self.dir(PARTIAL);
        for name in disk::names(&partial)? {
            let dir = partial.join(name);
            let old = last_written(&dir)
                .and_then(|at| SystemTime::now().duration_since(at).ok())
                .is_some_and(|age| age > ABANDONED_AFTER);
            // A download under way has it locked, however slow it is.
            if old && matches!(lock_dir(&dir), Ok(Some(_))) {
                disk::remove(&dir).map_err(StoreError::at("can't be removed", &dir))?;
            }
        }
        Ok(())
    }
}

/// When a file in the folder was last written.
fn last_written(dir: &Path) -> Option<SystemTime> {
    let of = |path: &Path| fs::symlink_metadata(path).and_then(|found| found.modified()).ok();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| of(&entry.path()));
    entries.chain(of(dir)).max()
}
