//! The parameters of preprocessing, as a model bundle states them.

use serde::{Deserialize, Serialize};

use super::PreprocessError;

/// How a model wants its input. See the [module](super) for what is computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessSpec {
    /// Length of the shorter side after resizing, in pixels: 1 to 4096.
    pub resize: u32,
    /// Side of the square that is cut from the centre, in pixels: 1 to `resize`.
    pub crop: u32,
    /// Per channel (red, green, blue), taken from values of 0 to 255.
    pub mean: [f32; 3],
    /// Per channel, what the difference is divided by.
    pub std: [f32; 3],
}

/// Bounds every product of sizes that is computed from a spec.
const MAX_SIDE: u32 = 4096;

impl PreprocessSpec {
    /// Values of one image in the output: `3 * crop * crop`.
    pub fn output_len(&self) -> usize {
        3 * self.crop as usize * self.crop as usize
    }

    /// The normalised value of a channel's level.
    pub fn normalise(&self, channel: usize, level: u8) -> f32 {
        (f32::from(level) - self.mean[channel]) / self.std[channel]
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`PreprocessError::InvalidSpec`] names the first field out of its bounds.
    pub fn validate(&self) -> Result<(), PreprocessError> {
        let invalid =
            |field, value: String, bound: String| Err(PreprocessError::InvalidSpec { field, value, bound });
        if !(1..=MAX_SIDE).contains(&self.resize) {
            return invalid("resize", self.resize.to_string(), format!("must be 1 to {MAX_SIDE}"));
        }
        if !(1..=self.resize).contains(&self.crop) {
            let bound = format!("must be 1 to {}, the value of resize", self.resize);
            return invalid("crop", self.crop.to_string(), bound);
        }
        for (channel, (&mean, &std)) in self.mean.iter().zip(&self.std).enumerate() {
            if !mean.is_finite() {
                return invalid("mean", format!("{:?}", self.mean), "must be finite".into());
            }
            if !(std.is_finite() && std > 0.0) {
                return invalid("std", format!("{:?}", self.std), "must be finite and above 0".into());
            }
            if !(self.normalise(channel, 0).is_finite() && self.normalise(channel, 255).is_finite()) {
                return invalid(
                    "std",
                    format!("{:?}", self.std),
                    "is so small that the result overflows".into(),
                );
            }
        }
        Ok(())
    }
}
