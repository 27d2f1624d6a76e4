//! The folder of one version: its files, of which none is a symbolic link or behind one.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::super::{Artifact, check_path};
use crate::error::{Link, SyncError, SyncResult};

/// Maximum depth of folders below a version's.
const MAX_DEPTH: usize = 32;

/// A version's folder.
pub(super) struct Folder {
    path: PathBuf,
    opened: OwnedFd,
}

/// A file of it, open for reading.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) bytes: u64,
    /// Changes when the file is replaced or written to.
    pub(super) content: String,
}

impl Folder {
    /// The folder; `None` when it does not exist.
    pub(super) fn open(path: &Path) -> SyncResult<Option<Self>> {
        match openat(CWD, path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(opened) => Ok(Some(Self { path: path.to_owned(), opened })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(refused(path, error)),
        }
    }

    /// All files, by path; an error if there are more than `limit`.
    pub(super) fn files(&self, limit: usize) -> SyncResult<Vec<Artifact>> {
        let mut files = Vec::new();
        let mut folders = vec![(self.path.clone(), String::new(), 0)];
        while let Some((folder, before, depth)) = folders.pop() {
            let unread = |error| unreadable(&folder, error);
            for entry in std::fs::read_dir(&folder).map_err(unread)? {
                let entry = entry.map_err(unread)?;
                let name = entry.file_name();
                let Some(name) = name.to_str() else {
                    let what = format!("the name of {} is not valid UTF-8", entry.path().display());
                    return Err(SyncError::permanent(Link::Disk, what));
                };
                let (path, at) = (format!("{before}{name}"), entry.path());
                check_path(Link::Disk, &path)?;
                let found = at.symlink_metadata().map_err(|error| unreadable(&at, error))?;
                if found.is_dir() && depth < MAX_DEPTH {
                    folders.push((at, path + "/", depth + 1));
                } else if found.is_file() {
                    files.push(Artifact { path, bytes: Some(found.len()) });
                } else {
                    return Err(no_file(&at));
                }
                if files.len() > limit {
                    let what = format!("{} has more than {limit} files", self.path.display());
                    return Err(SyncError::permanent(Link::Disk, what));
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// Opens a file, part by part, so that no link is followed on the way.
    pub(super) fn open_file(self, file: &str) -> SyncResult<Source> {
        let whole = self.path.join(file);
        let (mut at, mut folder) = (self.path, self.opened);
        let failed = |at: &Path, error| match error {
            Errno::NOTDIR if !at.is_symlink() => missing(&whole),
            Errno::NOENT => missing(&whole),
            error => refused(at, error),
        };
        let (folders, name) = file.rsplit_once('/').unwrap_or(("", file));
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            at.push(part);
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            folder = openat(&folder, part, flags, Mode::empty()).map_err(|error| failed(&at, error))?;
        }
        at.push(name);
        // Without waiting for the other end of a named pipe.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(&folder, name, flags, Mode::empty()).map_err(|error| failed(&at, error))?;
        let file = File::from(opened);
        let found = file.metadata().map_err(|error| unreadable(&at, error))?;
        if !found.is_file() {
            return Err(no_file(&at));
        }
        let (time, nanos) = (found.mtime(), found.mtime_nsec());
        let content = format!("{}:{}:{}:{time}.{nanos}", found.dev(), found.ino(), found.len());
        Ok(Source { path: at, file, bytes: found.len(), content })
    }
}

/// The error of a missing path.
pub(super) fn missing(path: &Path) -> SyncError {
    SyncError::permanent(Link::Disk, format!("{} does not exist", path.display()))
}

pub(super) fn unreadable(path: &Path, error: io::Error) -> SyncError {
    SyncError::permanent(Link::Disk, format!("cannot read {}", path.display())).because(error).of_the_link()
}

fn no_file(path: &Path) -> SyncError {
    let what = format!("{} is a symbolic link or not a regular file: refused", path.display());
    SyncError::permanent(Link::Disk, what)
}

fn refused(path: &Path, error: Errno) -> SyncError {
    match error {
        Errno::NOENT => missing(path),
        Errno::LOOP => no_file(path),
        // The error of a link where a folder is required.
        Errno::NOTDIR if path.is_symlink() => no_file(path),
        error => unreadable(path, error.into()),
    }
}
