//! Whether the newest events were lost, as far as that can be known, so that it can be said.
//!
//! Under `os_buffered` the file `open` holds the boot id of the machine for as long as the outbox is open. Found there
//! after another boot, it says that power was lost while events were only buffered.

use std::fs;
use std::io;
use std::path::Path;

use super::config::Durability;
use super::error::OutboxError;
use crate::durable;

const FILE: &str = "open";
const TEMP: &str = "open.tmp";

/// How the newest events were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostEnd {
    /// The log ends before what the consumer has committed.
    BeforeCursor,
    /// The machine went down while events were only buffered (`os_buffered`); it is not known whether any were lost.
    PowerLost,
}

/// Looks for a loss and notes durably that the log is open. `last` is the last sequence in the segments, if there are any.
pub(super) fn open(
    dir: &Path,
    durability: Durability,
    last: Option<u64>,
    committed: u64,
) -> Result<Option<LostEnd>, OutboxError> {
    let path = dir.join(FILE);
    let opened_in = match fs::read_to_string(&path) {
        Ok(boot) => Some(boot),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => None,
        Err(e) => return Err(OutboxError::io("read", &path, e)),
    };
    let boot = durable::boot_id();
    let lost = match opened_in {
        _ if committed > last.unwrap_or(0) => Some(LostEnd::BeforeCursor),
        Some(opened_in) if opened_in != boot => Some(LostEnd::PowerLost),
        _ => None,
    };
    match durability {
        Durability::Fsync => close(dir),
        Durability::OsBuffered => durable::replace(&path, TEMP, boot.as_bytes()),
    }
    .map_err(|e| OutboxError::storage("write", &path, 0, e))?;
    Ok(lost)
}

/// Notes that all events are durable.
pub(super) fn close(dir: &Path) -> io::Result<()> {
    durable::remove(&dir.join(FILE))
}
