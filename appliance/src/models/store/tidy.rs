//! What a start finds after a crash: leftovers go, whole bundles that the index missed come back.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::disk::{self, NEW};
use super::index::{self, Index};
use super::partial::lock_dir;
use super::{BUNDLES, ModelStore, PARTIAL, StoreError, admit};

/// A download that nobody has gone on with for so long is given up.
const ABANDONED: Duration = Duration::from_secs(7 * 24 * 3600);

impl ModelStore {
    pub(super) fn tidy(&self) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let before = match Index::load(self.root()) {
            Ok(index) => index,
            Err(StoreError::Index { path, source }) => {
                let aside = path.with_extension("json.damaged");
                tracing::warn!(path = %path.display(), aside = %aside.display(), error = %source,
                    "the index of models is damaged; it is put aside and made anew");
                fs::rename(&path, &aside).map_err(StoreError::at("can't be put aside", &path))?;
                Index::new(Vec::new())
            }
            Err(error) => return Err(error),
        };
        let mut bundles = Vec::new();
        for name in disk::names(&self.dir(BUNDLES))?.iter().filter(|name| !name.starts_with('.')) {
            if let Some(known) = before.get(name) {
                bundles.push(known.clone());
            } else if let Ok(bundle) = self.bundle(name) {
                tracing::warn!(
                    digest = name,
                    "a bundle that the index of models did not know is taken in again"
                );
                bundles.push(admit::entry_of(&bundle)?);
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

    /// Index files that did not get their name.
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
            let old = touched(&dir)
                .and_then(|at| SystemTime::now().duration_since(at).ok())
                .is_some_and(|age| age > ABANDONED);
            // Whoever works on it has it locked, however slow it is.
            if old && matches!(lock_dir(&dir), Ok(Some(_))) {
                disk::remove(&dir).map_err(StoreError::at("can't be removed", &dir))?;
            }
        }
        Ok(())
    }
}

/// When something in the folder was last written.
fn touched(dir: &Path) -> Option<SystemTime> {
    let of = |path: &Path| fs::symlink_metadata(path).and_then(|found| found.modified()).ok();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| of(&entry.path()));
    entries.chain(of(dir)).max()
}
