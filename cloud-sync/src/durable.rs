//! What makes files outlive a loss of power, for all stores: an fsync of the file, and one of the directory that holds
//! its name.
//!
//! A file system may lose, in any order, what was not forced: bytes, renames, new names, removals. So a file is forced
//! before it gets its name, and the directory before anybody is told that the file is there. Everything that forces
//! something goes through here, where `simulated` can look on.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};
use rustix::io::{Errno, retry_on_intr};

#[cfg(any(test, feature = "simulated-disk"))]
pub mod simulated;

/// What tells one start of this machine from another; of a container it is the host's. Empty where the system does not say.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Forces a file, its bytes and its length, to the disk.
///
/// # Errors
/// What the disk gives. Then nobody knows what of it is there, and another call may succeed without having written it.
pub fn sync_file(file: impl AsFd) -> io::Result<()> {
    let file = file.as_fd();
    observed(file, || Ok(retry_on_intr(|| rustix::fs::fsync(file))?))
}

/// As [`sync_file`], without times and what else nobody needs to read the bytes back.
///
/// # Errors
/// As [`sync_file`].
pub fn sync_data(file: impl AsFd) -> io::Result<()> {
    let file = file.as_fd();
    observed(file, || Ok(retry_on_intr(|| rustix::fs::fdatasync(file))?))
}

/// Forces the names in an open directory to the disk.
///
/// # Errors
/// What the disk gives.
pub fn sync_open_dir(dir: impl AsFd) -> io::Result<()> {
    sync_file(dir)
}

/// Forces the names in a directory to the disk: what was created, renamed or removed in it.
///
/// # Errors
/// What the disk gives.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    sync_open_dir(File::open(dir)?)
}

#[cfg(not(any(test, feature = "simulated-disk")))]
fn observed<F>(_: F, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    sync()
}

#[cfg(any(test, feature = "simulated-disk"))]
fn observed(file: impl AsFd, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let seen = simulated::before(&file);
    sync()?;
    simulated::after(seen, &file);
    Ok(())
}

/// Replaces the file `path` durably and as a whole, by way of `temporary` beside it. Nothing is left of it where that
/// fails.
///
/// # Errors
/// What the disk gives. The file is the old or the new one then.
pub fn replace(path: &Path, temporary: &str, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let temporary = dir.join(temporary);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| sync_file(&file)))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // On a full disk it takes room that others need.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_dir(dir))
}

/// Renames `from` to `to` unless something has that name, be it a link that leads nowhere. Not durable before the
/// directory is forced to the disk.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] where something has the name, and what the disk gives.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can, NFS for one.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

/// Removes a file durably; that it is not there is fine.
///
/// # Errors
/// What the disk gives.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("."))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory and those above it, and forces their names to the disk: also of those that are there, since
/// whoever made them may have ended before that.
///
/// # Errors
/// What the disk gives. The parent of one that was there and may not be read counts as durable, and those above it in any
/// case.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    // How many names are new, from the last one up.
    let made = path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).count();
    fs::create_dir_all(path)?;
    for (index, dir) in path.canonicalize()?.ancestors().skip(1).enumerate() {
        match sync_dir(dir) {
            // It holds a name that is far from new, in a directory that somebody else has made.
            Err(_) if index > made => {}
            Err(error) if index == made && is_not_ours(&error) => {}
            synced => synced?,
        }
    }
    Ok(())
}

fn is_not_ours(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::InvalidInput | ErrorKind::ReadOnlyFilesystem
    )
}
