//! Errors of the outbox, with the path and the limit concerned.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error of the outbox. It implements `Clone` because one failed write fails every append of its group.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// A setting is out of range.
    #[error("outbox setting {setting} is {value}, it must be {bound}")]
    Config {
        /// Name of the field of the configuration.
        setting: &'static str,
        /// The invalid value.
        value: String,
        /// The valid range.
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
        /// The newest version that this program supports.
        supported: u32,
    },
    /// An operating system error other than lack of space.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// The disk, the quota or the maximum file size is exhausted.
    #[error("no space to {action} {}: {needed} bytes needed", path.display())]
    Full {
        /// The operation, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Number of bytes to be written.
        needed: u64,
        /// The operating system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// The outbox is at its own limit and its policy is to refuse.
    #[error("the outbox in {} is at its limit of {max_bytes} bytes: {needed} more do not fit", dir.display())]
    Bound {
        /// The directory of the outbox.
        dir: PathBuf,
        /// Number of bytes to be written.
        needed: u64,
        /// The configured limit.
        max_bytes: u64,
    },
    /// Unsent bulk events already take their share of the outbox.
    #[error(
        "bulk events take {used} of {bound} bytes in the outbox in {}: {needed} more do not fit", dir.display()
    )]
    BulkBound {
        /// The directory of the outbox.
        dir: PathBuf,
        /// Number of bytes to be written.
        needed: u64,
        /// Bytes of the unsent bulk events.
        used: u64,
        /// The configured share of the outbox.
        bound: u64,
    },
    /// The event exceeds the maximum size.
    #[error("an event of {bytes} bytes exceeds the limit of {max} bytes")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit: the smaller of 1 MiB and about half a segment.
        max: usize,
    },
    /// Too many appends are already pending.
    #[error("{max_pending} events already wait for the disk")]
    Busy {
        /// The configured limit.
        max_pending: usize,
    },
    /// All sequences have been used.
    #[error("the outbox in {} has no more sequences for events: move it away to start with an empty one", dir.display())]
    Exhausted {
        /// The directory of the outbox.
        dir: PathBuf,
    },
    /// The outbox is closed.
    #[error("the outbox is closed")]
    Closed,
    /// A consumer committed a sequence that was never appended.
    #[error("cannot commit up to {upto}: the last event is {last}")]
    Commit {
        /// The given sequence.
        upto: u64,
        /// The last sequence.
        last: u64,
    },
    /// The event cannot be serialized as JSON.
    #[error("cannot serialize the event")]
    Encode(#[source] Arc<serde_json::Error>),
}

impl OutboxError {
    /// Whether it is due to lack of space, on the disk or under the outbox's own limit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Bound { .. } | Self::BulkBound { .. })
    }

    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Distinguishes lack of space, which may be temporary, from other errors.
    pub(super) fn storage(action: &'static str, path: &Path, needed: u64, source: io::Error) -> Self {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::Full { action, path: path.to_owned(), needed, source: Arc::new(source) }
            }
            _ => Self::io(action, path, source),
        }
    }

    /// The error with its cause in one line, for places that hold only text.
    pub(super) fn in_full(&self) -> String {
        crate::error::with_sources(self)
    }
}
