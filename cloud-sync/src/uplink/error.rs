//! Why an uplink could not be started.

use std::io;
use std::path::{Path, PathBuf};

use crate::outbox::OutboxError;

/// An error when an uplink is started. Once it runs it has none: its status says what is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UplinkError {
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The outbox cannot be read.
    #[error("cannot read the outbox")]
    Outbox(#[source] OutboxError),
    /// There is no thread to be had.
    #[error("cannot start the thread of the uplink")]
    Thread(#[source] io::Error),
}

impl UplinkError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}
