//! Records of a directory's registry beside the files: versions, aliases, tags, reports.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};

use super::super::{ModelVersion, Report};
use super::files::{Folder, unreadable};
use super::{DirRegistry, RESERVED, plain};
use crate::durable;
use crate::error::{Link, SyncError, SyncResult};

/// Maximum length of a file of an alias or of tags, in bytes.
const MAX_RECORD: u64 = 1 << 20;

impl DirRegistry {
    /// The names of all models.
    pub(super) fn models(&self) -> SyncResult<Vec<String>> {
        let found = std::fs::read_dir(&self.root).map_err(|error| unreadable(&self.root, error))?;
        names_of(&self.root, found)
    }

    /// The version of an alias; `None` when there is no such alias.
    pub(super) fn alias(&self, name: &str, alias: &str) -> SyncResult<Option<String>> {
        let path = self.root.join(name).join("aliases").join(alias);
        let Some(text) = read(&path)? else { return Ok(None) };
        let version = String::from_utf8_lossy(&text).trim().to_owned();
        match plain(&version) {
            Ok(_) => Ok(Some(version)),
            Err(error) => {
                let what = format!("{} does not contain a version", path.display());
                Err(SyncError::permanent(Link::Disk, what).because(error))
            }
        }
    }

    /// A version; `None` when there is none.
    pub(super) fn version(&self, name: &str, version: &str) -> SyncResult<Option<ModelVersion>> {
        let path = self.root.join(name).join(plain(version)?);
        if Folder::open(&path)?.is_none() {
            return Ok(None);
        }
        let mut aliases = Vec::new();
        for alias in names(&self.root.join(name).join("aliases"))? {
            if self.alias(name, &alias)?.as_deref() == Some(version) {
                aliases.push(alias);
            }
        }
        let created = path.metadata().and_then(|found| found.modified()).ok();
        let (name, version) = (name.to_owned(), version.to_owned());
        let tags = self.tags(&name, &version)?;
        let source = path.display().to_string();
        Ok(Some(ModelVersion { name, version, aliases, tags, source, created }))
    }

    /// All versions, newest first: numbers by number, other names after them.
    pub(super) fn versions_of(&self, name: &str) -> SyncResult<Vec<ModelVersion>> {
        let mut versions = Vec::new();
        for version in names(&self.root.join(name))? {
            versions.extend(self.version(name, &version)?);
        }
        versions.sort_by_cached_key(|version| {
            Reverse((version.version.parse::<u64>().ok(), version.version.clone()))
        });
        Ok(versions)
    }

    fn tags(&self, name: &str, version: &str) -> SyncResult<BTreeMap<String, String>> {
        let path = self.root.join(name).join("tags").join(format!("{version}.json"));
        let Some(text) = read(&path)? else { return Ok(BTreeMap::new()) };
        serde_json::from_slice(&text).map_err(|error| {
            let what = format!("{} does not contain tags: a JSON object of strings", path.display());
            SyncError::permanent(Link::Disk, what).because(error)
        })
    }

    /// Sets a tag; other processes that set one wait.
    pub(super) fn set_tag(&self, of: &ModelVersion, key: String, value: String) -> SyncResult<()> {
        let folder = self.root.join(&of.name).join("tags");
        let path = folder.join(format!("{}.json", of.version));
        let unset = |error| unwritable(&path, error);
        std::fs::create_dir_all(&folder).map_err(unset)?;
        // The folder itself is locked: the files in it are replaced.
        let lock = File::open(&folder).map_err(unset)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| unset(error.into()))?;
        let mut tags = self.tags(&of.name, &of.version)?;
        tags.insert(key, value);
        let text = serde_json::to_vec_pretty(&tags).map_err(|error| unset(error.into()))?;
        replace(&path, &text).map_err(unset)
    }

    /// Stores a report, replacing an earlier one of the same run.
    pub(super) fn keep(&self, report: &Report) -> SyncResult<()> {
        let seconds =
            |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let text = serde_json::json!({
            "experiment": report.experiment,
            "run": report.run,
            "begin_seconds": report.time.map(|(begin, _)| seconds(begin)),
            "end_seconds": report.time.map(|(_, end)| seconds(end)),
            "params": report.params,
            "metrics": report.metrics,
            "tags": report.tags,
        });
        let folder = self.root.join("reports").join(plain(&report.experiment)?);
        let path = folder.join(format!("{}.json", plain(&report.run)?));
        let unkept = |error| unwritable(&path, error);
        std::fs::create_dir_all(&folder).map_err(unkept)?;
        replace(&path, format!("{text:#}\n").as_bytes()).map_err(unkept)
    }
}

/// The names in a folder that may be those of models, versions or aliases; none when it does not exist.
fn names(folder: &Path) -> SyncResult<Vec<String>> {
    match std::fs::read_dir(folder) {
        Ok(found) => names_of(folder, found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(unreadable(folder, error)),
    }
}

fn names_of(folder: &Path, found: std::fs::ReadDir) -> SyncResult<Vec<String>> {
    let mut names = Vec::new();
    for entry in found {
        let entry = entry.map_err(|error| unreadable(folder, error))?;
        let name = entry.file_name();
        // Files of editors and of this program begin with a dot.
        if let Some(name) = name.to_str().filter(|name| !name.starts_with('.') && !RESERVED.contains(name)) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    // A file beside the versions, such as a README, is not one.
    let is_alias = folder.ends_with("aliases");
    names.retain(|name| is_alias || folder.join(name).is_dir());
    Ok(names)
}

fn read(path: &Path) -> SyncResult<Option<Vec<u8>>> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_RECORD + 1).read_to_end(&mut text));
    match read {
        Ok(_) if text.len() as u64 > MAX_RECORD => {
            let what = format!("{} has more than {MAX_RECORD} bytes", path.display());
            Err(SyncError::permanent(Link::Disk, what))
        }
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

/// Replaces a file atomically and durably.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = format!(".{}{}", ulid::Ulid::generate(), crate::blob::PARTIAL);
    durable::replace(path, &fresh, text)
}

fn unwritable(path: &Path, error: io::Error) -> SyncError {
    let what = format!("cannot write {}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SyncError::transient(Link::Disk, what),
        _ => SyncError::permanent(Link::Disk, what),
    }
    .because(error)
}
