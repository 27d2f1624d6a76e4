//! Durable file operations for all stores: fsync of files and of the directories that hold their names, and atomic
//! replacement.
//!
//! A file system may lose, in any order, what was not synced: bytes, renames, new names, removals. So a file is synced
//! before it gets its name, and the directory before the file is reported to exist. Every fsync of the workspace goes
//! through this module, where `simulated` observes it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::{Errno, retry_on_intr};

#[cfg(any(test, feature = "simulated-disk"))]
pub mod simulated;

/// Identifies the current boot of this machine (in a container, of the host). Empty where the system does not provide it.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Syncs a file, its bytes and its metadata, to disk.
///
/// # Errors
/// The error of the disk. It is then unknown which bytes are on disk, and a further call may succeed without having
/// written them.
pub fn sync_file(file: impl AsFd) -> io::Result<()> {
    let file = file.as_fd();
    observed(file, || Ok(retry_on_intr(|| rustix::fs::fsync(file))?))
}

/// Like [`sync_file`], without metadata that is not needed to read the bytes back, such as times.
///
/// # Errors
/// As [`sync_file`].
pub fn sync_data(file: impl AsFd) -> io::Result<()> {
    let file = file.as_fd();
    observed(file, || Ok(retry_on_intr(|| rustix::fs::fdatasync(file))?))
}

/// Syncs the entries of an open directory to disk.
///
/// # Errors
/// The error of the disk.
pub fn sync_open_dir(dir: impl AsFd) -> io::Result<()> {
    sync_file(dir)
}

/// Syncs the entries of a directory to disk: what was created, renamed or removed in it.
///
/// # Errors
/// The error of the disk.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    sync_open_dir(File::open(dir)?)
}

#[cfg(not(any(test, feature = "simulated-disk")))]
fn observed<F>(_: F, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    sync()
}

#[cfg(any(test, feature = "simulated-disk"))]
fn observed(file: impl AsFd, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let observed = simulated::before(&file);
    sync()?;
    simulated::after(observed, &file);
    Ok(())
}

/// Replaces the file `path` atomically and durably: writes `temporary` (a name in the same directory), syncs it, renames
/// it, and syncs the directory. After a failure the temporary file is removed.
///
/// # Errors
/// The error of the disk. The file is then either the old or the new one.
pub fn replace(path: &Path, temporary: &str, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let temporary = dir.join(temporary);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| sync_file(&file)))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // On a full disk it would take space that others need.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_dir(dir))
}

/// Renames `from` to `to` unless that name exists, even as a dangling link. Not durable before the
/// directory is synced.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if the name exists, or the error of the disk.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system supports it, e.g. NFS.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

/// Removes a file durably; does nothing if it does not exist.
///
/// # Errors
/// The error of the disk.
pub fn remove(path: &Path) -> io::Result<()> {
    if remove_if_exists(path)? { sync_dir(path.parent().unwrap_or(Path::new("."))) } else { Ok(()) }
}

/// Removes a file; false if it did not exist. Not durable before the directory is synced.
///
/// # Errors
/// The error of the disk.
pub fn remove_if_exists(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates a directory and its parents, and syncs their entries: also those of existing ones, because the process that
/// created them may have ended before it synced them.
///
/// # Errors
/// The error of the disk. The entry of an existing directory whose parent may not be read counts as durable, and so do
/// those above it in any case.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    // Number of new names, from the last one up.
    let created = path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).count();
    fs::create_dir_all(path)?;
    for (index, dir) in path.canonicalize()?.ancestors().skip(1).enumerate() {
        match sync_dir(dir) {
            // An old entry, in a directory that another program has created.
            Err(_) if index > created => {}
            Err(error) if index == created && is_foreign(&error) => {}
            synced => synced?,
        }
    }
    Ok(())
}

fn is_foreign(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::InvalidInput | ErrorKind::ReadOnlyFilesystem
    )
}
