//! Folders for targets that need files.

use std::path::Path;

use tempfile::TempDir;

/// An empty folder, in memory where the machine has such a file system: a target runs thousands of times a second.
pub(crate) fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder")
}
