//! For tests: a registry that is a folder and can be made to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use cloud_sync::check::CheckStep;
use cloud_sync::error::{Link, SyncError, SyncResult};
use cloud_sync::registry::{Artifact, ModelReference, ModelRegistry, ModelVersion, Report};
use inference::bundle::testing::write_bundle;
use tempfile::TempDir;

use super::{ModelStore, Progress, PullError, PullLimits, Pulled};

/// A registry of one version, whose artifacts are the files of a folder.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) dir: TempDir,
    pub(crate) tags: BTreeMap<String, String>,
    /// Listed besides what is there.
    pub(crate) listed: Vec<Artifact>,
    /// Files that are listed with another length, or none.
    pub(crate) lies: BTreeMap<String, Option<u64>>,
    /// The connection breaks once so many bytes were sent; taken back after that.
    pub(crate) breaks_after: AtomicU64,
    /// So many calls after that one find the registry away.
    pub(crate) away: AtomicUsize,
    /// Every write finds the disk full.
    pub(crate) full: bool,
    /// Milliseconds that a file takes.
    pub(crate) delay: u64,
    pub(crate) sent: AtomicU64,
    pub(crate) calls: AtomicUsize,
}

impl Shelf {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            tags: BTreeMap::new(),
            listed: Vec::new(),
            lies: BTreeMap::new(),
            breaks_after: AtomicU64::new(u64::MAX),
            away: AtomicUsize::new(0),
            full: false,
            delay: 0,
            sent: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
        }
    }

    /// With the bundle of the small model.
    pub(crate) fn with_bundle() -> Self {
        let shelf = Self::new();
        write_bundle(shelf.path(), "colours.onnx");
        shelf
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn list(&mut self, path: &str, bytes: u64) {
        self.listed.push(Artifact { path: path.into(), bytes: Some(bytes) });
    }

    pub(crate) fn version(&self, version: &str) -> ModelVersion {
        ModelVersion {
            name: "Colour model".into(),
            version: version.into(),
            aliases: Vec::new(),
            tags: self.tags.clone(),
            source: format!("shelf:{}", self.path().display()),
            created: None,
        }
    }

    pub(crate) async fn pull_to(&self, store: &ModelStore) -> Result<Pulled, PullError> {
        super::pull(self, &self.version("1"), store, &limits(), &|_| ()).await
    }

    pub(crate) async fn refusal(&self) -> PullError {
        let root = tempfile::tempdir().unwrap();
        let store = ModelStore::open(root.path()).unwrap();
        let error = self.pull_to(&store).await.unwrap_err();
        assert!(store.list().unwrap().is_empty());
        for folder in ["files", "bundles"] {
            assert_eq!(names(&root.path().join(folder)), BTreeSet::new(), "{error}");
        }
        let left = !names(&root.path().join("partial")).is_empty();
        assert_eq!(left, error.is_transient() && !error.is_disk_full(), "what is left of {error:?}");
        error
    }
}

pub(crate) fn limits() -> PullLimits {
    PullLimits { keep_free: 0, max_bytes: 1 << 20, max_files: 20, ..PullLimits::default() }
}

pub(crate) fn ignore(_: Progress) {}

pub(crate) fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn walk(dir: &Path, below: &str, found: &mut Vec<Artifact>) {
    for name in names(dir) {
        let (path, full) = (format!("{below}{name}"), dir.join(&name));
        if full.is_dir() {
            walk(&full, &format!("{path}/"), found);
        } else {
            found.push(Artifact { path, bytes: Some(full.metadata().unwrap().len()) });
        }
    }
}

#[async_trait]
impl ModelRegistry for Shelf {
    async fn resolve(&self, _: &ModelReference) -> SyncResult<Option<ModelVersion>> {
        Ok(Some(self.version("1")))
    }

    async fn versions(&self, _: &str) -> SyncResult<Vec<ModelVersion>> {
        Ok(vec![self.version("1")])
    }

    async fn artifacts(&self, _: &ModelVersion, limit: usize) -> SyncResult<Vec<Artifact>> {
        let mut found = self.listed.clone();
        walk(self.path(), "", &mut found);
        for artifact in &mut found {
            if let Some(lie) = self.lies.get(&artifact.path) {
                artifact.bytes = *lie;
            }
        }
        if found.len() > limit {
            return Err(SyncError::permanent(Link::Mlflow, format!("more than {limit} files")));
        }
        Ok(found)
    }

    async fn fetch(&self, _: &ModelVersion, path: &str, to: &Path, limit: u64) -> SyncResult<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(std::time::Duration::from_millis(self.delay)).await;
        let failed = |error: std::io::Error| SyncError::transient(Link::Disk, "cannot write").because(error);
        if self.full {
            return Err(failed(std::io::ErrorKind::StorageFull.into()));
        }
        let broken = self.breaks_after.load(Ordering::SeqCst) == u64::MAX;
        if broken && self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            return Err(SyncError::transient(Link::Mlflow, "the registry is away"));
        }
        let mut from = fs::File::open(self.path().join(path)).map_err(failed)?;
        let mut to = fs::File::options().create(true).append(true).open(to).map_err(failed)?;
        let here = to.metadata().map_err(failed)?.len();
        let mut rest = Vec::new();
        from.seek(SeekFrom::Start(here)).and_then(|_| from.read_to_end(&mut rest)).map_err(failed)?;
        if here + rest.len() as u64 > limit {
            return Err(SyncError::permanent(Link::Mlflow, format!("{path} is larger than {limit} bytes")));
        }
        let left = self.breaks_after.load(Ordering::SeqCst);
        let now = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        to.write_all(&rest[..now]).map_err(failed)?;
        self.sent.fetch_add(now as u64, Ordering::SeqCst);
        if now < rest.len() {
            self.breaks_after.store(u64::MAX, Ordering::SeqCst);
            return Err(SyncError::transient(Link::Mlflow, "the connection broke"));
        }
        if left != u64::MAX {
            self.breaks_after.fetch_sub(now as u64, Ordering::SeqCst);
        }
        Ok(())
    }

    async fn tag(&self, _: &ModelVersion, _: &str, _: &str) -> SyncResult<()> {
        Ok(())
    }

    async fn report(&self, _: &Report) -> SyncResult<()> {
        Ok(())
    }

    async fn check(&self) -> Vec<CheckStep> {
        Vec::new()
    }
}
