//! Quarantine of damaged files for inspection; a limited number per name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Marker in the name of such a file.
const MARK: &str = ".damaged-";

/// Maximum quarantined files per name; the oldest are deleted.
const MAX_KEPT: usize = 3;

/// Renames a file to `<name>.damaged-<seconds>` in its directory, durably. Returns its new path.
pub(crate) fn quarantine(path: &Path) -> io::Result<PathBuf> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}{MARK}");
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut seconds = since.as_secs();
    let mut aside = dir.join(format!("{prefix}{seconds:010}"));
    while aside.exists() {
        seconds += 1;
        aside = dir.join(format!("{prefix}{seconds:010}"));
    }
    fs::rename(path, &aside)?;
    let mut kept = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_one = entry.file_name().to_string_lossy().starts_with(&prefix) && entry.file_type()?.is_file();
        if is_one && entry.path() != aside {
            kept.push(entry.path());
        }
    }
    kept.sort();
    let excess = (kept.len() + 1).saturating_sub(MAX_KEPT);
    for old in kept.iter().take(excess) {
        fs::remove_file(old)?;
    }
    crate::durable::sync_dir(dir)?;
    Ok(aside)
}

/// The quarantined files in a directory, sorted by name; blocking. A missing directory has none.
///
/// # Errors
/// When the directory can't be read.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(MARK) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
