//! Models in a directory: `<root>/<name>/<version>/<files>`, beside them `aliases/<alias>` (a file that holds the
//! version) and `tags/<version>.json`; reports in `<root>/reports/<experiment>/<run>.json`.

mod files;
mod records;

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::partial::{Origin, Partial, Size};
use super::{Artifact, ModelReference, ModelRegistry, ModelVersion, Report, Which, check_path};
use crate::check::{CheckStep, Steps};
use crate::error::{Link, SyncError, SyncResult};
use files::{Folder, missing};

/// Bytes copied at once.
const CHUNK_LEN: usize = 1 << 20;

/// A registry in a directory, which is filled by hand or by copying. Clones are the same registry.
#[derive(Debug, Clone)]
pub struct DirRegistry {
    root: PathBuf,
}

impl DirRegistry {
    /// The registry in `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Runs disk I/O on a blocking thread.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> SyncResult<T> + Send + 'static,
    ) -> SyncResult<T> {
        let own = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&own)).await;
        done.unwrap_or_else(|error| {
            Err(SyncError::permanent(Link::Disk, "reading was aborted").because(error))
        })
    }

    fn folder(&self, version: &ModelVersion) -> SyncResult<Folder> {
        let path = self.root.join(plain(&version.name)?).join(plain(&version.version)?);
        match Folder::open(&path)? {
            Some(folder) => Ok(folder),
            None => Err(missing(&path)),
        }
    }

    fn check_now(&self) -> Vec<CheckStep> {
        let mut steps = Steps::default();
        let models = self.models();
        let remark = |models: &Vec<String>| match models.len() {
            0 => "it has no models".to_owned(),
            more => format!("models: {more}"),
        };
        let Some(models) = steps.note("list the directory", models, remark) else { return steps.finish() };
        if let Some(name) = models.first() {
            let versions = self.versions_of(name);
            steps.note("list the versions of a model", versions, |found| format!("{name}: {}", found.len()));
        }
        steps.finish()
    }
}

#[async_trait]
impl ModelRegistry for DirRegistry {
    async fn resolve(&self, reference: &ModelReference) -> SyncResult<Option<ModelVersion>> {
        let reference = reference.clone();
        self.on_disk(move |own| {
            let name = plain(&reference.name)?;
            let version = match &reference.which {
                Which::Version(version) => version.clone(),
                Which::Alias(alias) => match own.alias(name, plain(alias)?)? {
                    Some(version) => version,
                    None => return Ok(None),
                },
            };
            match (own.version(name, &version)?, &reference.which) {
                (None, Which::Alias(alias)) => {
                    let what = format!("{name}@{alias} names version {version:?}, which does not exist");
                    Err(SyncError::permanent(Link::Disk, what))
                }
                (found, _) => Ok(found),
            }
        })
        .await
    }

    async fn versions(&self, name: &str) -> SyncResult<Vec<ModelVersion>> {
        let name = name.to_owned();
        self.on_disk(move |own| own.versions_of(plain(&name)?)).await
    }

    async fn artifacts(&self, version: &ModelVersion, limit: usize) -> SyncResult<Vec<Artifact>> {
        let version = version.clone();
        self.on_disk(move |own| own.folder(&version)?.files(limit)).await
    }

    async fn fetch(&self, version: &ModelVersion, path: &str, to: &Path, limit: u64) -> SyncResult<()> {
        check_path(Link::Disk, path)?;
        let (own, wanted) = (version.clone(), path.to_owned());
        let source = self.on_disk(move |this| this.folder(&own)?.open_file(&wanted)).await?;
        let what = source.path.display().to_string();
        let size = Size { limit, listed: None };
        size.check(Link::Disk, &what, source.bytes)?;
        let origin = Origin { source: what.clone(), content: source.content };
        let mut file = match Partial::left(to).await {
            Some(left) if left.origin == origin => Partial::resume(to, &left).await?,
            _ => Partial::begin(to, Some(&origin)).await?,
        };
        let unread = |error| SyncError::permanent(Link::Disk, format!("cannot read {what}")).because(error);
        let mut from = tokio::fs::File::from_std(source.file);
        tokio::io::AsyncSeekExt::seek(&mut from, std::io::SeekFrom::Start(file.bytes()))
            .await
            .map_err(unread)?;
        let mut piece = vec![0; CHUNK_LEN];
        loop {
            let read = tokio::io::AsyncReadExt::read(&mut from, &mut piece).await.map_err(unread)?;
            if read == 0 {
                break;
            }
            // The file may be being written.
            size.check(Link::Disk, &what, file.bytes() + read as u64)?;
            file.write(&piece[..read]).await?;
        }
        if file.bytes() != source.bytes {
            let what = format!("{what} had {} bytes and has {}", source.bytes, file.bytes());
            return Err(SyncError::transient(Link::Disk, what));
        }
        file.finish().await
    }

    async fn tag(&self, version: &ModelVersion, key: &str, value: &str) -> SyncResult<()> {
        let (version, key, value) = (version.clone(), key.to_owned(), value.to_owned());
        self.on_disk(move |own| {
            own.folder(&version)?;
            own.set_tag(&version, key, value)
        })
        .await
    }

    async fn report(&self, report: &Report) -> SyncResult<()> {
        let report = report.clone();
        self.on_disk(move |own| own.keep(&report)).await
    }

    async fn check(&self) -> Vec<CheckStep> {
        let checked = self.on_disk(|own| Ok(own.check_now())).await;
        checked.unwrap_or_else(|error| {
            vec![CheckStep { what: "list the directory".into(), outcome: Err(error) }]
        })
    }
}

/// Reserved names beside versions and models.
const RESERVED: [&str; 3] = ["aliases", "tags", "reports"];

/// # Errors
/// Permanent when `name` is not a valid name in a path.
fn plain(name: &str) -> SyncResult<&str> {
    check_path(Link::Disk, name)?;
    if name.contains('/') || name.starts_with('.') || RESERVED.contains(&name) {
        let what = format!("{name:?} is not a valid name of a model, a version, an alias or a report");
        return Err(SyncError::permanent(Link::Disk, what));
    }
    Ok(name)
}
