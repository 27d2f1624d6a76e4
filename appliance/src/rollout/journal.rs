//! The journal: what outlives the process, per model an [`Entry`].
//!
//! One JSON file for all models, `rollouts.json`, replaced as a whole: a reader finds the old or the new content, never a
//! part. It is written before the routes change, so that a process that dies in between restarts with a verified version.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cloud_sync::durable;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::entry::Entry;

const FILE: &str = "rollouts.json";
const PARTIAL: &str = "rollouts.partial~";
const FORMAT: u32 = 1;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Content {
    format: u32,
    models: BTreeMap<String, Entry>,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// The file's content. Never locked during file I/O: `/health` and `/models` read it on I/O threads.
    content: Mutex<Content>,
    /// Serializes changes.
    writing: Mutex<()>,
}

/// The file can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct JournalError {
    path: PathBuf,
    reason: String,
}

impl Journal {
    /// Reads the file in the folder of models; blocking. A damaged file is renamed: the process then starts with the
    /// configured bundles and polls the registry.
    ///
    /// # Errors
    /// When the file can't be read, or was written by a later version of Weir.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let path = dir.join(FILE);
        let failed = |reason: String| JournalError { path: path.clone(), reason };
        let content = match fs::read(&path) {
            Ok(json) => match serde_json::from_slice::<Content>(&json) {
                Ok(content) if content.format == FORMAT => content,
                Ok(content) => {
                    let what =
                        format!("format {}: this version of Weir reads format {FORMAT}", content.format);
                    return Err(failed(what));
                }
                Err(error) => {
                    let aside = path.with_extension("damaged");
                    tracing::error!(path = %path.display(), %error, "the journal is damaged; it is renamed to {}", aside.display());
                    fs::rename(&path, &aside).map_err(|e| failed(e.to_string()))?;
                    Content { format: FORMAT, models: BTreeMap::new() }
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Content { format: FORMAT, models: BTreeMap::new() }
            }
            Err(error) => return Err(failed(error.to_string())),
        };
        Ok(Self { path: path.clone(), content: Mutex::new(content), writing: Mutex::new(()) })
    }

    /// The entry of a model; empty where there is none.
    pub fn entry(&self, model: &str) -> Entry {
        self.content.lock().models.get(model).cloned().unwrap_or_default()
    }

    /// Digests of the bundles of all versions that serve or are the way back.
    pub fn needed(&self) -> Vec<String> {
        let content = self.content.lock();
        let of = |entry: &Entry| [entry.serving.clone(), entry.previous.clone()];
        content.models.values().flat_map(of).flatten().map(|placed| placed.digest).collect()
    }

    /// Changes the entry of a model; blocking. On Ok the change is durable, on an error nothing has changed. Readers see
    /// the change once it is durable, and do not wait for the disk.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn change<T>(&self, model: &str, change: impl FnOnce(&mut Entry) -> T) -> Result<T, JournalError> {
        let _writing = self.writing.lock();
        let mut changed = self.content.lock().clone();
        let before = changed.models.get(model).cloned();
        let entry = changed.models.entry(model.to_owned()).or_default();
        let result = change(entry);
        if before.as_ref() == Some(entry) {
            return Ok(result);
        }
        write(&self.path, &changed)
            .map_err(|error| JournalError { path: self.path.clone(), reason: error.to_string() })?;
        *self.content.lock() = changed;
        Ok(result)
    }

    /// The error of a change that was not started since the process ends.
    pub(super) fn not_begun(&self) -> JournalError {
        JournalError { path: self.path.clone(), reason: "the process ends".to_owned() }
    }
}

fn write(path: &Path, content: &Content) -> std::io::Result<()> {
    let mut json = serde_json::to_vec_pretty(content)?;
    json.push(b'\n');
    durable::replace(path, PARTIAL, &json)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use cloud_sync::durable::simulated::{SimulatedDisk, after_each_loss};
    use rustix::fs::{FileType, Mode, OFlags};

    use super::*;
    use crate::models::Origin;
    use crate::rollout::DeployedVersion;

    fn origin(version: &str) -> Origin {
        Origin { source: "s3://b/1".into(), name: "fish".into(), version: version.into() }
    }

    #[test]
    fn what_was_changed_is_there_again_and_a_damaged_file_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.entry("fish"), Entry::default());
        journal
            .change("fish", |entry| {
                entry.serving = Some(DeployedVersion::new("abc", &origin("3")));
                entry.reject(&origin("4"), "golden case a.jpg: wrong");
                entry.queue_tag(&origin("3"), "loading");
                entry.queue_tag(&origin("3"), "serving");
            })
            .unwrap();
        let again = Journal::open(dir.path()).unwrap().entry("fish");
        assert_eq!(again.serving.as_ref().map(DeployedVersion::origin), Some(origin("3")));
        assert_eq!(again.rejection(&origin("4")).unwrap().reason, "golden case a.jpg: wrong");
        let elsewhere = Origin { source: "s3://b/2".into(), ..origin("4") };
        assert!(again.rejection(&elsewhere).is_none());
        assert_eq!(again.pending_tags.len(), 1);
        assert_eq!(journal.needed(), ["abc"]);
        fs::write(dir.path().join(FILE), "{\"format\": 2, \"models\": {}}").unwrap();
        assert!(Journal::open(dir.path()).unwrap_err().to_string().contains("format 2"));
        fs::write(dir.path().join(FILE), "{\"format\": 1, \"mod").unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().entry("fish"), Entry::default());
        assert!(dir.path().join("rollouts.damaged").is_file());
    }

    #[test]
    fn a_change_that_cannot_be_written_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.change("fish", |entry| entry.pinned = Some("1".into())).unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        let error = journal.change("fish", |entry| entry.pinned = None).unwrap_err();
        assert!(error.to_string().contains("rollouts.json"), "{error}");
        assert_eq!(journal.entry("fish").pinned.as_deref(), Some("1"));
    }

    #[test]
    fn a_change_outlives_a_loss_of_power_at_any_moment() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SimulatedDisk::watch(dir.path());
        let journal = Journal::open(dir.path()).unwrap();
        for version in 1..=4 {
            let serving = DeployedVersion::new("abc", &origin(&version.to_string()));
            journal.change("fish", |entry| entry.serving = Some(serving)).unwrap();
            disk.acknowledge();
        }
        after_each_loss(&disk.kill_points(), |dir, acknowledged, outcome| {
            let journal = Journal::open(dir).unwrap();
            let serving = journal.entry("fish").serving.map_or(0, |placed| placed.version.parse().unwrap());
            let expected = acknowledged..=acknowledged + 1;
            assert!(expected.contains(&serving), "{outcome:?}: version {serving} of {expected:?}");
            assert!(!dir.join("rollouts.damaged").exists());
            journal.change("fish", |entry| entry.pinned = Some("7".into())).unwrap();
        });
    }

    #[test]
    fn what_is_known_is_read_while_a_change_waits_for_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Journal::open(dir.path()).unwrap());
        journal.change("fish", |entry| entry.pinned = Some("1".into())).unwrap();
        // A pipe in place of the file to be written: opening it waits until somebody reads from it.
        let pipe = dir.path().join("rollouts.partial~");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let (begun, writing) = mpsc::channel();
        let writer = Arc::clone(&journal);
        let change = std::thread::spawn(move || {
            writer.change("fish", |entry| {
                entry.pinned = Some("2".into());
                begun.send(()).unwrap();
            })
        });
        writing.recv().unwrap();
        let (answer, answered) = mpsc::channel();
        let reader = Arc::clone(&journal);
        std::thread::spawn(move || answer.send((reader.entry("fish").pinned, reader.needed())));
        let read = answered.recv_timeout(Duration::from_secs(20));
        // Lets the writer go on; a pipe can't be synced, so its change fails and is none.
        let _pipe =
            File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(&pipe).unwrap();
        assert!(change.join().unwrap().is_err());
        assert_eq!(read.unwrap().0.as_deref(), Some("1"));
        assert_eq!(journal.entry("fish").pinned.as_deref(), Some("1"));
    }
}
