//! The memory of which images are done with: the digests of the last 100,000 or more, over restarts.
//!
//! Two files of 16 bytes an image, `sent` and `sent.old`. Digests are appended to the first; when it is full
//! it takes the place of the second. Nothing is forced to the disk: a digest that a crash has lost costs a
//! look at the storage, and a torn or garbled one is a digest that no image has.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::error::CaptureError;
use super::item::Digest;

/// Digests of one file: at least so many are remembered, at most twice as many.
pub(super) const PER_FILE: usize = 131_072;
const DIGEST_BYTES: usize = 16;
const FILE: &str = "sent";
const OLD: &str = "sent.old";

#[derive(Debug)]
pub(super) struct Sent {
    dir: PathBuf,
    state: Mutex<State>,
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
        let newest = load(&path)?;
        let older = load(&dir.join(OLD))?;
        let file = open_to_append(&path).map_err(|e| CaptureError::io("open", &path, e))?;
        Ok(Self { dir: dir.to_owned(), state: Mutex::new(State { newest, older, file }) })
    }

    pub(super) fn contains(&self, digest: Digest) -> bool {
        let short = digest.short();
        let state = self.state.lock();
        state.newest.contains(&short) || state.older.contains(&short)
    }

    /// Remembers an image. What the disk says is only worth a line: memory has it until the restart.
    pub(super) fn add(&self, digest: Digest) {
        let short = digest.short();
        let mut state = self.state.lock();
        if state.older.contains(&short) || !state.newest.insert(short) {
            return;
        }
        let mut result = state.file.write_all(&short);
        if state.newest.len() >= PER_FILE {
            state.older = std::mem::take(&mut state.newest);
            result = result.and_then(|()| self.turn_over(&mut state));
        }
        if let Err(error) = result {
            tracing::warn!(%error, dir = %self.dir.display(), "cannot note that an image was sent");
        }
    }

    fn turn_over(&self, state: &mut State) -> io::Result<()> {
        let path = self.dir.join(FILE);
        fs::rename(&path, self.dir.join(OLD))?;
        state.file = open_to_append(&path)?;
        Ok(())
    }
}

fn load(path: &Path) -> Result<HashSet<[u8; DIGEST_BYTES]>, CaptureError> {
    match fs::read(path) {
        Ok(bytes) => Ok(bytes.as_chunks().0.iter().copied().collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(e) => Err(CaptureError::io("read", path, e)),
    }
}

/// Cuts off a torn digest first: those behind it would all be out of step.
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
