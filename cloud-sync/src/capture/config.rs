//! Settings of capture, and their errors.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::item::Digest;

/// Settings of capture.
#[derive(Debug, Clone)]
pub struct CaptureConfig {
    /// The directory of the spool; created if it does not exist. Nothing else may be stored there.
    pub dir: PathBuf,
    /// Which images are captured.
    pub rule: CaptureRule,
    /// Maximum bytes of images that wait to be sent; above it new ones are skipped. Permanently refused ones may take
    /// another tenth of it.
    pub max_bytes: u64,
    /// Maximum bytes of images that wait for the writer: they are held in memory, with the memory that is accounted
    /// for them.
    pub max_waiting: u64,
    /// The name of this node, for the sidecar.
    pub node: String,
    /// Wait after the first failure of the storage.
    pub backoff_initial: Duration,
    /// Maximum wait between two attempts.
    pub backoff_max: Duration,
}

impl CaptureConfig {
    /// The defaults: 2 GiB, backoff from half a second up to a minute.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, rule: CaptureRule, node: impl Into<String>) -> Self {
        Self {
            dir: dir.into(),
            rule,
            max_bytes: 2 << 30,
            max_waiting: 64 << 20,
            node: node.into(),
            backoff_initial: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
        }
    }
}

/// Which images are captured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CaptureRule {
    /// All.
    All,
    /// Images with a confidence below this, 0 to 1.
    Below(f32),
    /// This share, 0 to 1, selected by digest: the same image is always in or always out, on every node.
    Sample(f64),
}

impl CaptureRule {
    pub(super) fn check(self) -> Result<(), CaptureError> {
        let (setting, value) = match self {
            Self::All => return Ok(()),
            Self::Below(bound) => ("below", f64::from(bound)),
            Self::Sample(share) => ("sample", share),
        };
        if (0.0..=1.0).contains(&value) {
            return Ok(());
        }
        Err(CaptureError::Setting { setting, value: value.to_string(), bound: "0 to 1".into() })
    }

    pub(super) fn matches(self, digest: Digest, confidence: f32) -> bool {
        match self {
            Self::All => true,
            // NaN counts as minimum confidence.
            Self::Below(bound) => confidence.is_nan() || confidence < bound,
            Self::Sample(share) => digest.fraction() < share,
        }
    }
}

/// An error on opening capture. Later errors are only counted as skipped images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// A setting is out of range.
    #[error("capture setting {setting} is {value}, it must be {bound}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// The invalid value.
        value: String,
        /// The valid range.
        bound: String,
    },
    /// An operating system error.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

impl CaptureError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}
