//! Remembers which images are done: the digests of the last 100,000 or more, across restarts.
//!
//! Two files of 16 bytes per image, `sent` and `sent.old`. Digests are appended to the first; when it is full it
//! replaces the second. Nothing is synced: a digest lost in a crash costs a query of the storage, and a torn or
//! corrupted one matches no image. For the same reason a file that cannot be read, or is not one of these, is
//! quarantined and an empty one takes its place.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::config::CaptureError;
use super::item::Digest;
use crate::quarantine::quarantine;

/// Digests per file: at least this many are remembered, at most twice as many.
pub(super) const PER_FILE: usize = 131_072;
const DIGEST_BYTES: usize = 16;
const FILE: &str = "sent";
const OLD: &str = "sent.old";

#[derive(Debug)]
pub(super) struct Sent {
    dir: PathBuf,
    state: Mutex<State>,
    quarantined: Vec<PathBuf>,
}

#[derive(Debug)]
struct State {
    newest: HashSet<[u8; DIGEST_BYTES]>,
    older: HashSet<[u8; DIGEST_BYTES]>,
    file: File,
}

impl Sent {
    pub(super) fn open(dir: &Path) -> Result<Self, CaptureError> {
        let path = dir.join(FILE);
        let mut quarantined = Vec::new();
        let newest = load(&path, &mut quarantined)?;
        let older = load(&dir.join(OLD), &mut quarantined)?;
        let file = open_to_append(&path).map_err(|e| CaptureError::io("open", &path, e))?;
        Ok(Self { dir: dir.to_owned(), state: Mutex::new(State { newest, older, file }), quarantined })
    }

    /// The quarantined files.
    pub(super) fn quarantined(&self) -> &[PathBuf] {
        &self.quarantined
    }

    pub(super) fn contains(&self, digest: Digest) -> bool {
        let short = digest.short();
        let state = self.state.lock();
        state.newest.contains(&short) || state.older.contains(&short)
    }

    /// Remembers an image. Disk errors are only logged: memory has it until the restart.
    pub(super) fn add(&self, digest: Digest) {
        let short = digest.short();
        let mut state = self.state.lock();
        if state.older.contains(&short) || !state.newest.insert(short) {
            return;
        }
        let mut result = state.file.write_all(&short);
        if state.newest.len() >= PER_FILE {
            state.older = std::mem::take(&mut state.newest);
            result = result.and_then(|()| self.rotate(&mut state));
        }
        if let Err(error) = result {
            tracing::warn!(%error, dir = %self.dir.display(), "cannot record that an image was sent");
        }
    }

    fn rotate(&self, state: &mut State) -> io::Result<()> {
        let path = self.dir.join(FILE);
        fs::rename(&path, self.dir.join(OLD))?;
        state.file = open_to_append(&path)?;
        Ok(())
    }
}

fn load(path: &Path, quarantined: &mut Vec<PathBuf>) -> Result<HashSet<[u8; DIGEST_BYTES]>, CaptureError> {
    let error = match read(path) {
        Ok(bytes) => return Ok(bytes.as_chunks().0.iter().copied().collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(e) => e,
    };
    let aside = quarantine(path).map_err(|e| CaptureError::io("quarantine", path, e))?;
    tracing::error!(%error, file = %path.display(), aside = %aside.display(), "a damaged file was quarantined");
    quarantined.push(aside);
    Ok(HashSet::new())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let most = (PER_FILE * DIGEST_BYTES) as u64;
    let mut bytes = Vec::new();
    // One digest may be torn, and the last may have been written before a crash that prevented the rotation.
    if File::open(path)?.take(2 * most + 1).read_to_end(&mut bytes)? as u64 > 2 * most {
        return Err(io::Error::other("it exceeds its maximum length"));
    }
    Ok(bytes)
}

/// Truncates a torn digest first: those after it would be misaligned.
fn open_to_append(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    let length = file.metadata()?.len();
    file.set_len(length - length % DIGEST_BYTES as u64)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: usize) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    #[test]
    fn at_least_a_hundred_thousand_are_remembered_over_restarts_and_the_files_stay_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let sent = Sent::open(dir.path()).unwrap();
        let count = 3 * PER_FILE + 5;
        for n in 0..count {
            sent.add(digest(n));
            sent.add(digest(n));
        }
        for sent in [sent, Sent::open(dir.path()).unwrap()] {
            assert!((count - 100_000..count).all(|n| sent.contains(digest(n))));
            assert!(!sent.contains(digest(0)) && !sent.contains(digest(count)));
        }
        let bytes = fs::metadata(dir.path().join(FILE)).unwrap().len();
        assert_eq!(bytes, 5 * DIGEST_BYTES as u64);
        assert_eq!(fs::metadata(dir.path().join(OLD)).unwrap().len(), (PER_FILE * DIGEST_BYTES) as u64);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_quarantined() {
        let dir = tempfile::tempdir().unwrap();
        let sent = Sent::open(dir.path()).unwrap();
        assert!(sent.quarantined().is_empty());
        sent.add(digest(1));
        drop(sent);
        fs::rename(dir.path().join(FILE), dir.path().join(OLD)).unwrap();
        // A directory in its place, and a file that is far too long.
        fs::create_dir(dir.path().join(FILE)).unwrap();
        let sent = Sent::open(dir.path()).unwrap();
        assert_eq!(sent.quarantined().len(), 1);
        assert!(sent.contains(digest(1)), "the other file counts");
        sent.add(digest(2));
        drop(sent);
        File::create(dir.path().join(OLD)).unwrap().set_len(1 << 40).unwrap();
        let sent = Sent::open(dir.path()).unwrap();
        assert_eq!(sent.quarantined().len(), 1);
        assert!(sent.contains(digest(2)) && !sent.contains(digest(1)));
        let listed = crate::quarantine::list(dir.path()).unwrap();
        assert_eq!(listed.len(), 2, "{listed:?}");
        assert!(crate::quarantine::list(&dir.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn a_torn_digest_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        Sent::open(dir.path()).unwrap().add(digest(1));
        let mut file = File::options().append(true).open(dir.path().join(FILE)).unwrap();
        file.write_all(&[1, 2, 3]).unwrap();
        Sent::open(dir.path()).unwrap().add(digest(2));
        let sent = Sent::open(dir.path()).unwrap();
        assert!(sent.contains(digest(1)) && sent.contains(digest(2)));
    }
}
