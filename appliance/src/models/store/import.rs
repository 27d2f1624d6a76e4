//! Import of a bundle: content into the pool, a folder of links, its name, the index, in this order.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cloud_sync::durable::{self, sync_dir};
use inference::bundle::{Bundle, BundleError, MANIFEST, digest_of};

use super::disk::{self, GONE, NEW, link, open_regular};
use super::index::{Index, StoredBundle};
use super::{BUNDLES, FILES, ModelStore, Origin, StagingDir, StoreError};

/// Nesting depth of folders in a bundle.
const MAX_DEPTH: usize = 8;

/// A file of the bundle.
struct Content {
    /// Relative to the bundle's folder.
    path: PathBuf,
    sha256: String,
    bytes: u64,
}

impl ModelStore {
    /// Imports the bundle that was assembled in the staging folder, and records its origin. It is verified in its final
    /// place. The staging folder is no longer needed then; after an error it is unchanged.
    ///
    /// # Errors
    /// [`StoreError`]: the bundle is damaged or incomplete, or the disk can't hold it. Nothing of it is in the store then.
    pub fn import(&self, staging: &StagingDir, origin: &Origin) -> Result<Bundle, StoreError> {
        let stage = staging.stage_dir();
        let mut contents = Vec::new();
        list(&stage, Path::new(""), MAX_DEPTH, &mut contents)?;
        let _lock = self.lock()?;
        let mut index = Index::load(self.root())?;
        let imported = self.add(&stage, &contents).and_then(|bundle| {
            record(&mut index, &bundle, &contents, origin);
            index.save(self.root())?;
            Ok(bundle)
        });
        if imported.is_err() {
            // A full disk is the most likely reason: remove at once what was added before it was full.
            let known = Index::load(self.root())?;
            if let Err(error) = self.drop_unused(&known).and_then(|()| self.drop_unknown(&known)) {
                tracing::warn!(%error, "leftovers of a failed import stay until the next start");
            }
        }
        imported
    }

    fn add(&self, stage: &Path, contents: &[Content]) -> Result<Bundle, StoreError> {
        let files = self.dir(FILES);
        for content in contents {
            self.pool(&stage.join(&content.path), &content.sha256)?;
        }
        sync_dir(&files).map_err(StoreError::at("can't be written", &files))?;
        let manifest = contents.iter().find(|c| c.path == Path::new(MANIFEST));
        let Some(Content { sha256: digest, .. }) = manifest else {
            let source = std::io::ErrorKind::NotFound.into();
            return Err(BundleError::Read { dir: stage.into(), file: MANIFEST.into(), source }.into());
        };
        let bundles = self.dir(BUNDLES);
        let (new, named) = (bundles.join(format!("{NEW}{digest}")), bundles.join(digest));
        let placed = self.build(&new, contents).and_then(|()| {
            Bundle::open(&new)?;
            let failed = StoreError::at("can't be put in its place", &named);
            if named.exists() {
                if let Ok(whole) = self.bundle(digest) {
                    disk::remove(&new).map_err(&failed)?;
                    return Ok(whole);
                }
                // It was damaged. A process that has its files open keeps them.
                let gone = bundles.join(format!("{GONE}{digest}"));
                disk::remove(&gone).and_then(|()| fs::rename(&named, &gone)).map_err(&failed)?;
                fs::rename(&new, &named).and_then(|()| disk::remove(&gone)).map_err(&failed)?;
            } else {
                fs::rename(&new, &named).map_err(&failed)?;
            }
            sync_dir(&bundles).map_err(failed)?;
            Ok(Bundle::open(&named)?)
        });
        if placed.is_err() {
            let _ = disk::remove(&new);
        }
        placed
    }

    /// Ensures that the pool has this content, durable and undamaged.
    fn pool(&self, from: &Path, sha256: &str) -> Result<(), StoreError> {
        let (name, new) = (self.dir(FILES).join(sha256), self.dir(FILES).join(format!("{NEW}{sha256}")));
        if open_regular(&name).and_then(digest_of).is_ok_and(|found| found == sha256) {
            return Ok(());
        }
        let placed = disk::remove(&new)
            .and_then(|()| link(from, &new))
            .and_then(|()| durable::sync_file(open_regular(&new)?))
            .and_then(|()| fs::rename(&new, &name));
        // A rename onto another name of the same file does nothing, and leaves both.
        let _ = disk::remove(&new);
        placed.map_err(StoreError::at("can't be stored", &name))
    }

    fn build(&self, new: &Path, contents: &[Content]) -> Result<(), StoreError> {
        let failed = StoreError::at("can't be made", new);
        disk::remove(new).and_then(|()| fs::create_dir(new)).map_err(&failed)?;
        let mut folders = vec![new.to_path_buf()];
        for content in contents {
            let to = new.join(&content.path);
            if let Some(folder) = to.parent().filter(|folder| !folders.iter().any(|known| known == folder)) {
                fs::create_dir_all(folder).map_err(&failed)?;
                folders.extend(folder.ancestors().take_while(|f| *f != new).map(Path::to_path_buf));
            }
            link(&self.dir(FILES).join(&content.sha256), &to)
                .map_err(StoreError::at("can't be made", &to))?;
        }
        folders.iter().try_for_each(|folder| sync_dir(folder)).map_err(failed)
    }
}

/// Lists every file below `stage`; anything else but folders is refused.
fn list(stage: &Path, below: &Path, depth: usize, found: &mut Vec<Content>) -> Result<(), StoreError> {
    for name in disk::names(&stage.join(below))? {
        let path = below.join(name);
        let full = stage.join(&path);
        let failed = StoreError::at("can't be read", &full);
        let kind = fs::symlink_metadata(&full).map_err(&failed)?;
        if kind.is_dir() && depth > 0 {
            list(stage, &path, depth - 1, found)?;
        } else {
            let sha256 = open_regular(&full).and_then(digest_of).map_err(failed)?;
            found.push(Content { path, sha256, bytes: kind.len() });
        }
    }
    Ok(())
}

fn record(index: &mut Index, bundle: &Bundle, contents: &[Content], origin: &Origin) {
    let known = index.get(bundle.digest());
    let mut origins = known.map_or(Vec::new(), |known| known.origins.clone());
    // A registered version is one bundle: the origin of another one is no longer valid.
    for other in &mut index.bundles {
        other.origins.retain(|o| o != origin);
    }
    origins.retain(|o| o != origin);
    origins.push(origin.clone());
    index.bundles.retain(|b| b.digest != bundle.digest());
    index.bundles.push(StoredBundle {
        digest: bundle.digest().into(),
        model: bundle.manifest().name.clone(),
        version: bundle.manifest().version.clone(),
        origins,
        admitted: SystemTime::now(),
        bytes: contents.iter().map(|c| c.bytes).sum(),
        files: contents.iter().map(|c| c.sha256.clone()).collect(),
    });
}

/// An index entry for a bundle that is in the store and not in its index.
pub(super) fn entry_of(bundle: &Bundle) -> Result<StoredBundle, StoreError> {
    let mut contents = Vec::new();
    list(bundle.dir(), Path::new(""), MAX_DEPTH, &mut contents)?;
    let since = fs::metadata(bundle.dir()).and_then(|found| found.modified());
    Ok(StoredBundle {
        digest: bundle.digest().into(),
        model: bundle.manifest().name.clone(),
        version: bundle.manifest().version.clone(),
        origins: Vec::new(),
        admitted: since.unwrap_or_else(|_| SystemTime::now()),
        bytes: contents.iter().map(|c| c.bytes).sum(),
        files: contents.into_iter().map(|c| c.sha256).collect(),
    })
}
