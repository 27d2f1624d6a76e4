//! JPEG at the smallest scale that is fast: through libjpeg-turbo, whose warnings are evaluated, and plain baseline JPEGs at a
//! quarter or an eighth through our own decoder ([`scaled_baseline`]).

mod evidence;
mod header;
mod markers;
mod scaled_baseline;
mod strict;
mod turbo;

pub use header::{JpegHeader, jpeg_header};
pub(super) use scaled_baseline::EntropyWalk;
pub(super) use strict::{Colour, JpegDefect, read_strictly};

use super::{Buffer, DecodeError, DecodeLimits, Decoded, ImageHeader, Until, samples};
use crate::image::ImageFormat;
use scaled_baseline::ShrinkDecoder;
use turbo::{Failure, Request, Warnings};

/// The scales, in eighths, for which libjpeg-turbo has vectorised inverse transforms, smallest first.
///
/// It supports every eighth, but the others run scalar code. Decoding a 1080p frame of 4:2:0 on an AVX-512 server took 4.3 ms
/// at 2/8, 4.7 at 3/8, 4.5 at 4/8, 6.8 at 5/8, 7.4 at 6/8, 9.8 at 7/8 and 5.7 at 8/8; a VGA frame 1.33 ms at 5/8 and 1.26 at
/// 8/8; a 4K frame 9.9 ms at 1/8 and 12.5 at 2/8. So of the scales that keep the shorter side, the smallest of these four is
/// also the fastest.
const SCALES: [u32; 4] = [1, 2, 4, 8];

#[derive(Debug)]
pub(super) struct JpegDecoder {
    limits: DecodeLimits,
    shrink: ShrinkDecoder,
}

impl JpegDecoder {
    pub(super) fn new(limits: &DecodeLimits) -> Result<Self, DecodeError> {
        turbo::check().map_err(DecodeError::Setup)?;
        Ok(Self { limits: *limits, shrink: ShrinkDecoder::default() })
    }

    pub(super) fn retained_bytes(&self) -> usize {
        self.shrink.retained_bytes()
    }

    pub(super) fn trim(&mut self) {
        self.shrink.trim();
    }

    /// Decodes `bytes`, whose header is `header`, to RGB in `pixels`.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        header: &JpegHeader,
        shorter_side: u32,
        pixels: &mut Buffer,
        until: Until,
    ) -> Result<Decoded, DecodeError> {
        let eighths = if header.lossless { 8 } else { scale_for(header, shorter_side) };
        let (width, height) = (scaled(header.width, eighths), scaled(header.height, eighths));
        let (count, channels) =
            (width as usize * height as usize, if header.components == 4 { 4 } else { 3 });
        let buffer = pixels.take(channels * count);
        let reduced = eighths <= 2
            && header.is_plain()
            && self.shrink.decode(bytes, eighths as usize, buffer, width as usize, until).is_some();
        // What our own decoder does not support or finds invalid is left to the library.
        if !reduced {
            let max_memory = ImageHeader::from(*header).decode_memory;
            let max_scans = self.limits.scans_of(header.width, header.height);
            let request = Request { eighths, width, height, channels, max_memory, max_scans, until };
            let warnings =
                turbo::decode(bytes, &request, buffer).map_err(|failure| refusal(failure, max_scans))?;
            judge(bytes, warnings)?;
            if channels == 4 {
                samples::inverted_cmyk_to_rgb(buffer, count);
            }
        }
        Ok(Decoded { header: (*header).into(), width, height })
    }
}

fn refusal(failure: Failure, max: u32) -> DecodeError {
    match failure {
        Failure::Library(text) => corrupt(text),
        Failure::TooManyScans => DecodeError::TooManyScans { max },
        Failure::OutOfTime => DecodeError::OutOfTime,
        Failure::OtherSize => corrupt("its headers contradict each other"),
    }
}

/// Whether an image that the library decoded with warnings is complete. The library stops at warnings that cost a pixel.
fn judge(bytes: &[u8], warnings: Warnings) -> Result<(), DecodeError> {
    if warnings.is_empty() {
        return Ok(());
    }
    let evidence = evidence::of(bytes);
    if evidence.lacks_scans && !evidence.has_end {
        return Err(corrupt("it ends before its last scan"));
    }
    if evidence.lacks_restarts && (warnings.has_bytes_before_end() || warnings.is_ambiguous()) {
        return Err(corrupt("a restart marker is missing"));
    }
    // Bytes between intervals, and no end: the last of them may be missing.
    if warnings.is_ambiguous() && (warnings.lacks_end() || !evidence.has_end) {
        return Err(corrupt("it ends before its last pixel"));
    }
    Ok(())
}

/// The smallest of [`SCALES`] at which the shorter side is at least `shorter_side`.
fn scale_for(header: &JpegHeader, shorter_side: u32) -> u32 {
    let side = header.width.min(header.height);
    SCALES.into_iter().find(|&eighths| scaled(side, eighths) >= shorter_side).unwrap_or(8)
}

/// The scaled size of a side, rounded as in libjpeg.
fn scaled(side: u32, eighths: u32) -> u32 {
    (side * eighths).div_ceil(8)
}

fn corrupt(detail: impl Into<String>) -> DecodeError {
    DecodeError::corrupt(ImageFormat::Jpeg, detail)
}
