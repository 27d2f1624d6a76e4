//! A panic in a decoder ends the image that caused it, not the thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::DecodeError;
use crate::image::ImageFormat;

/// Runs `decode`. A panic becomes an error; whatever `decode` was writing to must then be replaced by the caller.
///
/// # Errors
/// What `decode` returns; the second half is whether it panicked.
pub(super) fn guarded<T>(
    format: ImageFormat,
    decode: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, (DecodeError, bool)> {
    // The state that a panic may leave behind is given up, as the doc comment asks.
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(result) => result.map_err(|error| (error, false)),
        Err(_) => {
            let detail = "the decoder failed on it; send it in another format";
            Err((DecodeError::unsupported(format, detail), true))
        }
    }
}
