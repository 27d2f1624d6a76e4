//! The one definition of what is computed from a decoded image, and the devices that compute it.
//!
//! 1. Turn the image upright.
//! 2. Resize it so that its shorter side is `resize`. The longer side becomes
//!    `floor(longer * resize / shorter + 1/2)`. The filter is a triangle whose support grows with the
//!    factor of reduction (antialiased bilinear; Pillow's `Resampling.BILINEAR`).
//! 3. Keep the `crop` by `crop` window that begins at `floor((size - crop) / 2)` on each axis.
//! 4. Per channel, `(value - mean) / std`, with values from 0 to 255. Layout NCHW, f32.
//!
//! The result is within 1/255 of full scale of this definition on every pixel: a device may round between
//! the two passes of the filter, and may take them in either order.
//!
//! No device turns or resizes the whole image. [`ResizeCrop`] says where the window lies in the *stored*
//! pixels; only the window is computed, and it is turned upright while it is written.
//!
//! [`CpuPreprocessor`] computes it on the CPU, [`cuda`] on NVIDIA GPUs: one [`kernel`] for a batch, which starts from the same
//! [`ResizeCrop`], rounds nothing in between, and also takes the planes of a JPEG decoder: an [`ImageDescriptor`] says how
//! an image lies in memory. Its arithmetic stands in `kernels/preprocess.h`, which also compiles for the host and is tested
//! there.

mod cpu;
pub mod cuda;
mod descriptor;
pub mod kernel;
mod placement;
mod spec;

pub use cpu::CpuPreprocessor;
pub use descriptor::{Element, ImageDescriptor, PixelLayout, ROW_GROUP, TensorDescriptor};
pub use placement::ResizeCrop;
pub use spec::PreprocessSpec;

/// Why preprocessing is not possible.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessError {
    /// A [`PreprocessSpec`] with a value out of its bounds.
    #[error("preprocess {field} = {value}: {bound}")]
    InvalidSpec {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it has to be.
        bound: String,
    },

    /// The output has not room for exactly one image.
    #[error("the output has {got} values; one image takes {expected}")]
    OutputLength {
        /// Length of the slice that was passed.
        got: usize,
        /// `3 * crop * crop`.
        expected: usize,
    },

    /// An image whose pixels are fewer than its size says, or that has none.
    #[error("an image of {width} x {height} with {bytes} bytes of pixels cannot be preprocessed")]
    BadImage {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// Length of its pixels.
        bytes: usize,
    },

    /// The resizing library refused.
    #[error("the image could not be resized")]
    Resize(#[from] fast_image_resize::ResizeError),
}
