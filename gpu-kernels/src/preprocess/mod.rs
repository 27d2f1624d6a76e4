//! The definition of the preprocessing of a decoded image, and its implementations.
//!
//! 1. Rotate the image upright.
//! 2. Resize it so that its shorter side is `resize`. The longer side becomes
//!    `floor(longer * resize / shorter + 1/2)`. The filter is a triangle whose support grows with the
//!    factor of reduction (antialiased bilinear; Pillow's `Resampling.BILINEAR`).
//! 3. Keep the `crop` by `crop` window that begins at `floor((size - crop) / 2)` on each axis.
//! 4. Per channel, `(value - mean) / std`, with values from 0 to 255. Layout NCHW, f32.
//!
//! Every implementation is within 1/255 of full scale of this definition on every pixel: it may round between the two passes
//! of the filter, and may take them in either order.
//!
//! No implementation rotates or resizes the whole image. [`ResizeCrop`] locates the window in the *stored* pixels; only the
//! window is computed, and it is rotated while it is written.
//!
//! [`CpuPreprocessor`] is the implementation on the CPU, [`cuda`] the one on NVIDIA GPUs: one kernel launch per batch, with
//! the same [`ResizeCrop`], without intermediate rounding, and also from the planes of a JPEG decoder ([`ImageDescriptor`]
//! describes the layout of an image in memory). The kernel's arithmetic is in `kernels/preprocess.h`, which also compiles for
//! the host, where it is tested.

mod cpu;
pub mod cuda;
mod descriptor;
mod placement;

pub use cpu::CpuPreprocessor;
pub use descriptor::{Element, ImageDescriptor, PixelLayout, ROW_GROUP, TensorDescriptor};
pub use placement::ResizeCrop;

use serde::{Deserialize, Serialize};

/// The parameters of a model's preprocessing, as its bundle states them. See the [module](self) for the definition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessSpec {
    /// Length of the shorter side after resizing, in pixels: 1 to 4096.
    pub resize: u32,
    /// Side of the square cropped from the centre, in pixels: 1 to `resize`.
    pub crop: u32,
    /// Mean per channel (red, green, blue), for values of 0 to 255.
    pub mean: [f32; 3],
    /// Divisor per channel (red, green, blue).
    pub std: [f32; 3],
}

/// Upper bound of the sizes, which keeps all products of sizes within their types.
const MAX_SIDE: u32 = 4096;

impl PreprocessSpec {
    /// Number of values of one image in the output: `3 * crop * crop`.
    pub fn output_len(&self) -> usize {
        3 * self.crop as usize * self.crop as usize
    }

    /// The normalised value of a level of a channel.
    pub fn normalise(&self, channel: usize, level: u8) -> f32 {
        (f32::from(level) - self.mean[channel]) / self.std[channel]
    }

    /// Validates all fields.
    ///
    /// # Errors
    /// [`PreprocessError::InvalidSpec`] for the first invalid field.
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

/// Why preprocessing is not possible.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessError {
    /// A [`PreprocessSpec`] has an invalid value.
    #[error("preprocess {field} = {value}: {bound}")]
    InvalidSpec {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: String,
        /// The valid range.
        bound: String,
    },

    /// The output does not have the size of one image.
    #[error("the output has {got} values; one image takes {expected}")]
    OutputLength {
        /// Length of the slice that was passed.
        got: usize,
        /// `3 * crop * crop`.
        expected: usize,
    },

    /// An image without pixels, or with fewer than its size implies.
    #[error("an image of {width} x {height} with {bytes} bytes of pixels cannot be preprocessed")]
    BadImage {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// Length of its pixels.
        bytes: usize,
    },

    /// The resizing library returned an error.
    #[error("the image could not be resized")]
    Resize(#[from] fast_image_resize::ResizeError),
}
