//! How much memory decoding an image may take, computed from its headers, and the most that is accepted.

use super::DecodeError;
use crate::image::ImageFormat;

/// Memory of a decode beside what grows with the pixels: tables, rows, metadata, copies of compressed data.
pub(super) const FIXED: u64 = 60 << 20;
/// Most bytes for each pixel that the header declares.
pub(super) const PER_PIXEL: u64 = 12;
/// Tables, row buffers of narrow images, decoder state: what every format needs.
pub(super) const BASE: u64 = 2 << 20;

pub(super) fn pixels(width: u32, height: u32) -> u64 {
    u64::from(width) * u64::from(height)
}

/// What may still be taken beside `memory`.
pub(super) fn left((width, height): (u32, u32), memory: u64) -> u64 {
    (FIXED + PER_PIXEL * pixels(width, height)).saturating_sub(memory)
}

/// `memory`, where it is within [`FIXED`] and [`PER_PIXEL`].
///
/// # Errors
/// [`DecodeError::UnsupportedImage`].
pub(super) fn accepted(
    format: ImageFormat,
    (width, height): (u32, u32),
    memory: u64,
) -> Result<u64, DecodeError> {
    let most = FIXED + PER_PIXEL * pixels(width, height);
    if memory > most {
        return Err(DecodeError::unsupported(
            format,
            format!(
                "decoding {width} x {height} pixels would take {memory} bytes of memory; at most {most} are accepted"
            ),
        ));
    }
    Ok(memory)
}
