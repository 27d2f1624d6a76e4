//! The directory in which captured images wait.
//!
//! ```text
//! <dir>/spool/<digest>.<ext>   an image
//! <dir>/spool/<digest>.json    its sidecar, placed after it: the pair is complete
//! <dir>/dead/                  the same, for what the storage has refused permanently
//! <dir>/tmp/                   files being written; emptied at the start
//! ```
//! Nothing is synced to disk. After the end of the process, however abrupt, the order of the renames holds; after a
//! loss of power a file may be short or empty, so a pair is checked against its digest before it is sent. All
//! functions block.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::config::CaptureError;
use super::item::{Digest, Sidecar};
use crate::durable;

const SIDECAR: &str = "json";

#[derive(Debug)]
pub(super) struct Spool {
    spool: PathBuf,
    dead: PathBuf,
    tmp: PathBuf,
    max_dead_bytes: u64,
    held: Held,
    dead_held: Held,
    /// Locked for each change of the spool and its counts, so that a survey sees no partial change.
    changing: Mutex<()>,
    /// A pair has been added.
    pub(super) arrived: Notify,
}

/// Contents of a directory. The number of images is changed after the bytes and read before them: a reader of the
/// number sees the bytes that belong to it.
#[derive(Debug, Default)]
struct Held {
    images: AtomicU64,
    bytes: AtomicU64,
}

/// A complete pair, in memory.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) digest: Digest,
    pub(super) sidecar: Sidecar,
    pub(super) json: Bytes,
    pub(super) image: Bytes,
}

/// What was found under a digest.
#[derive(Debug)]
pub(super) enum Loaded {
    Pair(Box<Pair>),
    /// Not a complete pair: unusable.
    Broken,
}

impl Spool {
    pub(super) fn open(dir: &Path, max_dead_bytes: u64) -> Result<Self, CaptureError> {
        let [spool, dead, tmp] = ["spool", "dead", "tmp"].map(|name| dir.join(name));
        for folder in [&spool, &dead, &tmp] {
            fs::create_dir_all(folder).map_err(|e| CaptureError::io("create", folder, e))?;
        }
        let cleared = remove_files(&tmp);
        cleared.map_err(|e| CaptureError::io("empty", &tmp, e))?;
        let held = survey(&spool).map_err(|e| CaptureError::io("read", &spool, e))?;
        let dead_held = survey(&dead).map_err(|e| CaptureError::io("read", &dead, e))?;
        Ok(Self {
            spool,
            dead,
            tmp,
            max_dead_bytes,
            held,
            dead_held,
            changing: Mutex::new(()),
            arrived: Notify::new(),
        })
    }

    pub(super) fn images(&self) -> u64 {
        self.held.images.load(Ordering::Acquire)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.held.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn dead_images(&self) -> u64 {
        self.dead_held.images.load(Ordering::Relaxed)
    }

    /// Adds a pair; false when the image exists already.
    pub(super) fn write(&self, sidecar: &Sidecar, image: &[u8]) -> io::Result<bool> {
        let json_path = self.spool.join(format!("{}.{SIDECAR}", sidecar.digest));
        if json_path.exists() {
            return Ok(false);
        }
        let json = serde_json::to_vec(sidecar)?;
        let image_path = self.spool.join(format!("{}.{}", sidecar.digest, sidecar.extension()));
        let changing = self.changing.lock();
        let result =
            self.place(&image_path, image).and_then(|()| self.place(&json_path, &json)).inspect_err(|_| {
                // Half a pair is useless, and on a full disk it takes space that others need.
                let _ = fs::remove_file(&image_path);
            });
        result?;
        self.held.add((image.len() + json.len()) as u64);
        drop(changing);
        self.arrived.notify_one();
        Ok(true)
    }

    fn place(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.tmp.join(path.file_name().unwrap_or_default());
        let placed = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
        placed.inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
    }

    /// Up to `count` waiting images, in no order, without those in `but`.
    pub(super) fn waiting(&self, count: usize, but: &HashSet<Digest>) -> io::Result<Vec<(Digest, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.spool)? {
            let path = entry?.path();
            let Some(digest) = digest_of(&path).filter(|digest| is_sidecar(&path) && !but.contains(digest))
            else {
                continue;
            };
            found.push((digest, path));
            if found.len() == count {
                break;
            }
        }
        Ok(found)
    }

    /// Reads a pair and checks it against its digest.
    pub(super) fn load(&self, digest: Digest) -> io::Result<Loaded> {
        let Some(json) = read(&self.sidecar_path(digest))? else { return Ok(Loaded::Broken) };
        let Ok(sidecar) = serde_json::from_slice::<Sidecar>(&json) else { return Ok(Loaded::Broken) };
        let Some(image) = read(&self.image_path(digest, &sidecar))? else { return Ok(Loaded::Broken) };
        if Digest::of(&image) != digest || sidecar.digest != digest.hex() {
            return Ok(Loaded::Broken);
        }
        Ok(Loaded::Pair(Box::new(Pair { digest, sidecar, json: json.into(), image: image.into() })))
    }

    /// Removes a pair that was sent. The sidecar first: an image alone is removed at the next start.
    pub(super) fn remove(&self, pair: &Pair) -> io::Result<()> {
        let _changing = self.changing.lock();
        self.remove_pair(pair)
    }

    fn remove_pair(&self, pair: &Pair) -> io::Result<()> {
        remove(&self.sidecar_path(pair.digest))?;
        remove(&self.image_path(pair.digest, &pair.sidecar))?;
        self.held.take(pair.size());
        Ok(())
    }

    /// Removes all files of a digest.
    pub(super) fn discard(&self, digest: Digest) -> io::Result<()> {
        let hex = digest.hex();
        let _changing = self.changing.lock();
        remove(&self.sidecar_path(digest))?;
        for entry in fs::read_dir(&self.spool)? {
            let path = entry?.path();
            if path.file_stem().is_some_and(|stem| stem == hex.as_str()) {
                remove(&path)?;
            }
        }
        // It is unknown what they counted for.
        let held = survey(&self.spool)?;
        self.held.bytes.store(held.bytes.into_inner(), Ordering::Relaxed);
        self.held.images.store(held.images.into_inner(), Ordering::Release);
        Ok(())
    }

    /// Moves a pair to the dead, with the reason in its sidecar; if there is no space for it there, it is removed,
    /// and this returns false.
    pub(super) fn move_to_dead(&self, pair: &Pair, reason: &str) -> io::Result<bool> {
        let _changing = self.changing.lock();
        let room = self.dead_held.bytes.load(Ordering::Relaxed) + pair.size() <= self.max_dead_bytes;
        if room {
            let mut sidecar = serde_json::to_value(&pair.sidecar)?;
            sidecar["refused"] = reason.into();
            let json = serde_json::to_vec(&sidecar)?;
            let name = format!("{}.{}", pair.digest.hex(), pair.sidecar.extension());
            fs::rename(self.image_path(pair.digest, &pair.sidecar), self.dead.join(name))?;
            self.place(&self.dead.join(format!("{}.{SIDECAR}", pair.digest.hex())), &json)?;
            self.dead_held.add((pair.image.len() + json.len()) as u64);
        }
        self.remove_pair(pair)?;
        Ok(room)
    }

    fn sidecar_path(&self, digest: Digest) -> PathBuf {
        self.spool.join(format!("{}.{SIDECAR}", digest.hex()))
    }

    fn image_path(&self, digest: Digest, sidecar: &Sidecar) -> PathBuf {
        self.spool.join(format!("{}.{}", digest.hex(), sidecar.extension()))
    }
}

impl Held {
    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.images.fetch_add(1, Ordering::Release);
    }

    fn take(&self, bytes: u64) {
        let less = |by: u64| move |held: u64| Some(held.saturating_sub(by));
        let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less(bytes));
        let _ = self.images.fetch_update(Ordering::Release, Ordering::Relaxed, less(1));
    }
}

impl Pair {
    fn size(&self) -> u64 {
        (self.image.len() + self.json.len()) as u64
    }
}

fn is_sidecar(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == SIDECAR)
}

fn digest_of(path: &Path) -> Option<Digest> {
    Digest::parse(path.file_stem()?.to_str()?)
}

/// Counts the pairs of a directory and removes images without a sidecar, left by a crash between the two.
fn survey(folder: &Path) -> io::Result<Held> {
    let (mut sidecars, mut images) = (HashSet::new(), Vec::new());
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let Some(digest) = digest_of(&path) else { continue };
        let length = match entry.metadata() {
            Ok(about) => about.len(),
            // The uploader has removed it meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        bytes += length;
        if is_sidecar(&path) {
            sidecars.insert(digest);
        } else {
            images.push((digest, path, length));
        }
    }
    Ok(Held { images: (sidecars.len() as u64).into(), bytes: (bytes - clear(&sidecars, &images)?).into() })
}

/// Removes images without a sidecar; returns their bytes.
fn clear(sidecars: &HashSet<Digest>, images: &[(Digest, PathBuf, u64)]) -> io::Result<u64> {
    let mut bytes = 0;
    for (digest, path, length) in images {
        if !sidecars.contains(digest) {
            remove(path)?;
            bytes += length;
        }
    }
    Ok(bytes)
}

fn remove_files(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        remove(&entry?.path())?;
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    durable::remove_if_exists(path).map(|_| ())
}
