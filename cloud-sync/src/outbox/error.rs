//! What can go wrong with the outbox, always with the path and the bound it went wrong at.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error of the outbox. It can be cloned because one failed write fails every append of its group.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// A setting is outside its bounds.
    #[error("outbox setting {setting} is {value}, it must be {bound}")]
    Config {
        /// Name of the field of the configuration.
        setting: &'static str,
        /// The value it had.
        value: String,
        /// What it must be.
        bound: String,
    },
    /// Another process, or another handle in this one, has the outbox open for writing.
    #[error("the outbox in {} is in use by another process", dir.display())]
    Locked {
        /// The directory of the outbox.
        dir: PathBuf,
    },
    /// A file was written by a newer version of the program.
    #[error("{} has format version {found}, this program reads up to {supported}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in its header.
        found: u32,
        /// The newest version that this program knows.
        supported: u32,
    },
    /// The operating system refused something, for another reason than lack of space.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk, the quota or the largest allowed file size is used up.
    #[error("no space to {action} {}: {needed} bytes needed", path.display())]
    Full {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// How many bytes were to be written.
        needed: u64,
        /// What the operating system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The outbox is at its own bound and its policy is to refuse.
    #[error("the outbox in {} is at its bound of {max_bytes} bytes: {needed} more do not fit", dir.display())]
    Bound {
        /// The directory of the outbox.
        dir: PathBuf,
        /// How many bytes were to be written.
        needed: u64,
        /// The configured bound.
        max_bytes: u64,
    },
    /// Bulk events that are still to be sent have their share of the outbox already.
    #[error(
        "bulk events take {used} of {bound} bytes in the outbox in {}: {needed} more do not fit", dir.display()
    )]
    BulkBound {
        /// The directory of the outbox.
        dir: PathBuf,
        /// How many bytes were to be written.
        needed: u64,
        /// How many those take which are there.
        used: u64,
        /// The configured share of the outbox.
        bound: u64,
    },
    /// One event is larger than an event may be.
    #[error("an event of {bytes} bytes is over the bound of {max} bytes")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The bound: the smaller of 1 MiB and about half a segment.
        max: usize,
    },
    /// Too many appends already wait for the disk.
    #[error("{max_pending} events already wait for the disk")]
    Busy {
        /// The configured bound.
        max_pending: usize,
    },
    /// Every number that an event can have was given out.
    #[error("the outbox in {} has no more numbers for events: move it away to start with an empty one", dir.display())]
    Exhausted {
        /// The directory of the outbox.
        dir: PathBuf,
    },
    /// The outbox is closed.
    #[error("the outbox is closed")]
    Closed,
    /// A consumer acknowledged what was never appended.
    #[error("cannot commit up to {upto}: the last event is {last}")]
    Commit {
        /// The sequence that was given.
        upto: u64,
        /// The last sequence there is.
        last: u64,
    },
    /// An event has no JSON form.
    #[error("cannot write the event as JSON")]
    Encode(#[source] Arc<serde_json::Error>),
}

impl OutboxError {
    /// Whether it is for lack of space, on the disk or under the outbox's own bound.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Bound { .. } | Self::BulkBound { .. })
    }

    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Tells lack of space, which may pass, from the rest.
    pub(super) fn storage(action: &'static str, path: &Path, needed: u64, source: io::Error) -> Self {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::Full { action, path: path.to_owned(), needed, source: Arc::new(source) }
            }
            _ => Self::io(action, path, source),
        }
    }

    /// The error with its cause in one line, for a place that keeps only text.
    pub(super) fn in_full(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}
