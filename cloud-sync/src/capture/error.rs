//! Why capturing could not be started.

use std::io;
use std::path::{Path, PathBuf};

/// An error when capture is opened. Once it runs it has none: it counts what it leaves out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// A setting is outside its bounds.
    #[error("capture setting {setting} is {value}, it must be {bound}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// The value it had.
        value: String,
        /// What it must be.
        bound: String,
    },
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl CaptureError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}
