//! Steps on disk that hold across a power cut, and files that are opened without following a link.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use cloud_sync::durable;
use rustix::fs::{Mode, OFlags};

use super::StoreError;

/// Names that begin so are not yet, or no longer, part of the store.
pub(super) const NEW: &str = ".new-";
pub(super) const GONE: &str = ".gone-";

/// A regular file, for reading. A link in its place, or anything else, is an error.
pub(in crate::models) fn open_regular(path: &Path) -> io::Result<File> {
    // Without NONBLOCK, opening a named pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

/// The same file under another name, or a copy of it where the file system has no links.
pub(in crate::models) fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
            Err(error)
        }
        Err(_) => {
            let mut copy = File::options().write(true).create_new(true).open(to)?;
            let done = io::copy(&mut open_regular(from)?, &mut copy).and_then(|_| durable::sync_file(&copy));
            if done.is_err() {
                let _ = fs::remove_file(to);
            }
            done
        }
    }
}

/// Removes a folder with all that is in it, or a file; that it is not there is fine.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Names in a folder that are text; the store makes no others.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let failed = StoreError::at("can't be listed", dir);
    let listed = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    Ok(listed.map_err(failed)?.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Bytes that are free where `dir` lies, for this user.
pub(super) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(dir)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}
