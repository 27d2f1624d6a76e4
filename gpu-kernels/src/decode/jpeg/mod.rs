//! JPEG at the smallest scale that is fast: through libjpeg-turbo, with a verdict on its warnings, and the plain kind at a
//! quarter or an eighth through our own [`shrink`].

mod header;
mod markers;
mod mend;
mod shrink;
mod strict;

pub use header::{JpegHeader, jpeg_header};
pub(super) use shrink::EntropyWalk;
pub(super) use strict::{Colour, Oddity, read_strictly};

use turbojpeg::{Decompressor, PixelFormat, ScalingFactor};

use super::buffer::Buffer;
use super::{DecodeError, DecodeLimits, samples};
use crate::image::{Image, ImageFormat};
use shrink::ShrinkDecoder;

/// The scales for which libjpeg-turbo has vectorised inverse transforms, smallest first.
///
/// It offers every eighth, but the others run scalar code. Decoding a 1080p frame of 4:2:0 on an AVX-512
/// server took 4.3 ms at 2/8, 4.7 at 3/8, 4.5 at 4/8, 6.8 at 5/8, 7.4 at 6/8, 9.8 at 7/8 and 5.7 at 8/8; a
/// VGA frame 1.33 ms at 5/8 and 1.26 at 8/8; a 4K frame 9.9 ms at 1/8 and 12.5 at 2/8. So of the scales
/// that keep the shorter side, the smallest of these four is also the fastest.
const SCALES: [ScalingFactor; 4] =
    [ScalingFactor::ONE_EIGHTH, ScalingFactor::ONE_QUARTER, ScalingFactor::ONE_HALF, ScalingFactor::ONE];

#[derive(Debug)]
pub(super) struct JpegDecoder {
    turbo: Decompressor,
    shrink: ShrinkDecoder,
    mended: Vec<u8>,
}

impl JpegDecoder {
    pub(super) fn new(limits: &DecodeLimits) -> Result<Self, DecodeError> {
        let mut turbo = Decompressor::new().map_err(DecodeError::Setup)?;
        // The second line behind the count of `jpeg_header`; to the library 0 means no limit.
        turbo.set_scan_limit(limits.max_scans.clamp(1, i32::MAX as u32)).map_err(DecodeError::Setup)?;
        Ok(Self { turbo, shrink: ShrinkDecoder::default(), mended: Vec::new() })
    }

    pub(super) fn retained_bytes(&self) -> usize {
        self.mended.capacity() + self.shrink.retained_bytes()
    }

    /// Decodes `bytes`, whose header is `header`, into `pixels`. CMYK passes through `samples`.
    pub(super) fn decode<'a>(
        &mut self,
        bytes: &[u8],
        header: &JpegHeader,
        shorter_side: u32,
        pixels: &'a mut Buffer,
        samples: &mut Buffer,
    ) -> Result<Image<'a>, DecodeError> {
        let scale = if header.lossless { ScalingFactor::ONE } else { scale_for(header, shorter_side) };
        self.turbo.set_scaling_factor(scale).map_err(|error| corrupt(error.to_string()))?;
        let width = scale.scale(header.width as usize);
        let height = scale.scale(header.height as usize);
        let rgb = pixels.take(3 * width * height);
        if let Some(eighths) = reduced(scale)
            && header.is_plain()
            && self.shrink.decode(bytes, eighths, rgb, width).is_some()
        {
            // Done; what our own decoder does not take, or finds odd, the library judges.
        } else if header.components == 4 {
            let cmyk = samples.take(4 * width * height);
            self.decode_into(bytes, cmyk, (width, height), PixelFormat::CMYK)?;
            samples::inverted_cmyk_to_rgb(cmyk, rgb);
        } else {
            self.decode_into(bytes, rgb, (width, height), PixelFormat::RGB)?;
        }
        Ok(Image {
            format: ImageFormat::Jpeg,
            width: width as u32,
            height: height as u32,
            pixels: rgb,
            orientation: header.orientation,
            original_width: header.width,
            original_height: header.height,
        })
    }

    /// Decodes, and where the library warns finds out whether a pixel was lost.
    fn decode_into(
        &mut self,
        bytes: &[u8],
        out: &mut [u8],
        size: (usize, usize),
        format: PixelFormat,
    ) -> Result<(), DecodeError> {
        let Err(first) = self.run(bytes, out, size, format) else { return Ok(()) };
        let complaint = Complaint::of(&first);
        if complaint == Complaint::Fatal {
            return Err(corrupt(detail(&first)));
        }

        let mut mended = std::mem::take(&mut self.mended);
        let evidence = mend::mend(bytes, &mut mended);
        // A warning about the end comes after every pixel, so that these need not be decoded again.
        let second =
            if complaint == Complaint::BeforeEnd { Err(first) } else { self.run(&mended, out, size, format) };
        self.mended = mended;
        if evidence.lacks_scans && !evidence.has_end {
            return Err(corrupt("it ends before its last scan"));
        }
        let Err(second) = second else { return Ok(()) };
        match Complaint::of(&second) {
            Complaint::Harmless => Ok(()),
            Complaint::BeforeEnd if !evidence.lacks_restarts => Ok(()),
            Complaint::Ambiguous if !evidence.lacks_restarts && evidence.has_end => Ok(()),
            _ if complaint == Complaint::EndOfFile => Err(corrupt("it ends before its last pixel")),
            _ => Err(corrupt(detail(&second))),
        }
    }

    fn run(
        &mut self,
        bytes: &[u8],
        out: &mut [u8],
        (width, height): (usize, usize),
        format: PixelFormat,
    ) -> Result<(), turbojpeg::Error> {
        let pitch = width * format.size();
        self.turbo.decompress(bytes, turbojpeg::Image { pixels: out, width, pitch, height, format })
    }
}

/// The scales that [`ShrinkDecoder`] serves, in eighths.
fn reduced(scale: ScalingFactor) -> Option<usize> {
    match scale {
        ScalingFactor::ONE_EIGHTH => Some(1),
        ScalingFactor::ONE_QUARTER => Some(2),
        _ => None,
    }
}

/// The smallest of [`SCALES`] at which the shorter side is at least `shorter_side`.
fn scale_for(header: &JpegHeader, shorter_side: u32) -> ScalingFactor {
    let side = header.width.min(header.height) as usize;
    SCALES.into_iter().find(|scale| scale.scale(side) >= shorter_side as usize).unwrap_or(ScalingFactor::ONE)
}

/// What an error of the library means for the pixels. It turns warnings into errors too, after it has
/// decoded the whole image, and tells them apart by their text alone (jerror.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Complaint {
    /// Bytes before the EOI: every block had been decoded by then, unless a restart marker was awaited.
    BeforeEnd,
    /// The file ends without an EOI; its pixels may be whole.
    EndOfFile,
    /// Something in a header that cost no pixel, but may hide a later warning.
    Harmless,
    /// Bytes before a restart marker or between two scans, as webcams write them; may hide a later warning.
    Ambiguous,
    /// Pixels are missing or wrong.
    Fatal,
}

impl Complaint {
    fn of(error: &turbojpeg::Error) -> Self {
        let turbojpeg::Error::TurboJpegError(text) = error else { return Self::Fatal };
        if text.contains("extraneous bytes before marker 0xd9") {
            Self::BeforeEnd
        } else if text.contains("extraneous bytes before marker")
            || text.starts_with("Inconsistent progression")
        {
            Self::Ambiguous
        } else if text.starts_with("Premature end of JPEG file") {
            Self::EndOfFile
        } else if text.starts_with("Unknown Adobe color transform")
            || text.starts_with("Warning: unknown JFIF revision")
            || text.starts_with("Invalid SOS parameters for sequential JPEG")
        {
            Self::Harmless
        } else {
            Self::Fatal
        }
    }
}

fn detail(error: &turbojpeg::Error) -> String {
    match error {
        turbojpeg::Error::TurboJpegError(text) => text.clone(),
        other => other.to_string(),
    }
}

fn corrupt(detail: impl Into<String>) -> DecodeError {
    DecodeError::corrupt(ImageFormat::Jpeg, detail)
}
