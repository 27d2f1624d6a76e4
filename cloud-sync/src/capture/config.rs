//! Settings of capture, and their errors.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::item::Digest;

/// How images are captured.
#[derive(Debug, Clone)]
pub struct CaptureConfig {
    /// The folder of the spool; made if it is missing. Nothing else may be kept there.
    pub dir: PathBuf,
    /// Which images.
    pub rule: CaptureRule,
    /// Most bytes of images that wait to be sent; beyond it new ones are left out. What is refused for good
    /// may take a tenth of it besides.
    pub max_bytes: u64,
    /// Most bytes of images that wait for the writer: they are held in memory, and with them what their memory is counted to.
    pub max_waiting: u64,
    /// The name of this node, for the sidecar.
    pub node: String,
    /// How long to wait after the first failure of the storage.
    pub first_wait: Duration,
    /// The longest wait between two tries.
    pub longest_wait: Duration,
}

impl CaptureConfig {
    /// The defaults: 2 GiB, tries again after half a second and then ever later, up to a minute.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, rule: CaptureRule, node: impl Into<String>) -> Self {
        Self {
            dir: dir.into(),
            rule,
            max_bytes: 2 << 30,
            max_waiting: 64 << 20,
            node: node.into(),
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// Which images are captured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CaptureRule {
    /// All.
    All,
    /// Those that the model is unsure of: confidence under this, 0 to 1.
    Below(f32),
    /// This share, 0 to 1, chosen by digest: the same image is always in or always out, on every node.
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

    pub(super) fn takes(self, digest: Digest, confidence: f32) -> bool {
        match self {
            Self::All => true,
            // A confidence that is no number is as unsure as can be.
            Self::Below(bound) => confidence.is_nan() || confidence < bound,
            Self::Sample(share) => digest.fraction() < share,
        }
    }
}

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
