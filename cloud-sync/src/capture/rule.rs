//! Which images are captured.

use super::error::CaptureError;
use super::item::Digest;

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
