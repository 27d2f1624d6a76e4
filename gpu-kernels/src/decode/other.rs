//! PNG, WebP, BMP, GIF and TIFF through the `image` crate.

use std::io::Cursor;

use image::codecs::{bmp, gif, png, tiff, webp};
use image::{ColorType, ImageDecoder, ImageError};

use super::buffer::Buffer;
use super::{DecodeError, DecodeLimits, ImageHeader, exif_orientation, riff, samples};
use crate::image::{Image, ImageFormat, Orientation};

/// Memory beside the pixels that a decoder may take: palettes, tables, metadata.
const OVERHEAD: u64 = 16 << 20;

/// Decodes `bytes`, which begin as `format` does, into `pixels`.
pub(super) fn decode<'a>(
    format: ImageFormat,
    bytes: &[u8],
    limits: &DecodeLimits,
    pixels: &'a mut Buffer,
    scratch: &mut Buffer,
) -> Result<Image<'a>, DecodeError> {
    let (header, decoder) = open(format, bytes, limits)?;
    let color = decoder.color_type();
    // The pixel limit has been held, so that both sizes fit in memory and in usize.
    let count = header.width as usize * header.height as usize;
    let rgb = pixels.take(3 * count);
    if color == ColorType::Rgb8 {
        decoder.read_image_boxed(rgb).map_err(|error| refusal(format, error))?;
    } else {
        let raw = scratch.take(usize::from(color.bytes_per_pixel()) * count);
        decoder.read_image_boxed(raw).map_err(|error| refusal(format, error))?;
        samples::to_rgb(color, raw, rgb);
    }
    Ok(Image {
        format,
        width: header.width,
        height: header.height,
        pixels: rgb,
        orientation: header.orientation,
        original_width: header.width,
        original_height: header.height,
    })
}

/// Reads the headers, holds them against `limits` and returns a decoder that is ready for its pixels.
pub(super) fn open<'a>(
    format: ImageFormat,
    bytes: &'a [u8],
    limits: &DecodeLimits,
) -> Result<(ImageHeader, Box<dyn ImageDecoder + 'a>), DecodeError> {
    let mut exif = None;
    // Sizes at fixed places are looked at before a decoder is set up, which may already allocate.
    if format == ImageFormat::WebP {
        let chunks = riff::read(bytes);
        for (width, height) in chunks.sizes {
            limits.check_size(format, width, height)?;
        }
        exif = chunks.exif;
    } else if let Some((width, height)) = declared_size(format, bytes) {
        limits.check_size(format, width, height)?;
    }

    let allowance = image_limits(limits);
    let mut decoder = decoder(format, bytes, &allowance).map_err(|error| refusal(format, error))?;
    let (width, height) = decoder.dimensions();
    limits.check_size(format, width, height)?;
    decoder.set_limits(allowance).map_err(|error| refusal(format, error))?;
    let color = decoder.color_type();
    if !samples::is_convertible(color) {
        return Err(DecodeError::unsupported(
            format,
            format!("samples of type {color:?}; send 8 or 16 bits"),
        ));
    }
    let orientation = match format {
        ImageFormat::WebP => exif.and_then(exif_orientation),
        // A broken tag says nothing about the pixels.
        _ => decoder.orientation().ok().and_then(|value| Orientation::from_exif(value.to_exif())),
    };
    let header = ImageHeader { format, width, height, orientation: orientation.unwrap_or_default() };
    Ok((header, decoder))
}

fn decoder<'a>(
    format: ImageFormat,
    bytes: &'a [u8],
    limits: &image::Limits,
) -> Result<Box<dyn ImageDecoder + 'a>, ImageError> {
    let reader = Cursor::new(bytes);
    Ok(match format {
        ImageFormat::Png => Box::new(png::PngDecoder::with_limits(reader, limits.clone())?),
        ImageFormat::WebP => Box::new(webp::WebPDecoder::new(reader)?),
        ImageFormat::Bmp => Box::new(bmp::BmpDecoder::new(reader)?),
        ImageFormat::Gif => Box::new(gif::GifDecoder::new(reader)?),
        ImageFormat::Tiff => Box::new(tiff::TiffDecoder::new(reader)?),
        // Another module decodes it; the `image` crate is built without it and says so.
        ImageFormat::Jpeg => {
            let hint = image::error::ImageFormatHint::Exact(image::ImageFormat::Jpeg);
            return Err(ImageError::Unsupported(hint.into()));
        }
    })
}

/// Width and height where the format keeps them at a fixed place.
fn declared_size(format: ImageFormat, bytes: &[u8]) -> Option<(u32, u32)> {
    let two = |at: usize| Some(u32::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?)));
    let four = |at: usize| Some(*bytes.get(at..)?.first_chunk::<4>()?);
    match format {
        ImageFormat::Png => Some((u32::from_be_bytes(four(16)?), u32::from_be_bytes(four(20)?))),
        ImageFormat::Gif => Some((two(6)?, two(8)?)),
        ImageFormat::Bmp if four(14)? == [12, 0, 0, 0] => Some((two(18)?, two(20)?)),
        // A negative height means that the top row comes first.
        ImageFormat::Bmp => {
            Some((i32::from_le_bytes(four(18)?).unsigned_abs(), i32::from_le_bytes(four(22)?).unsigned_abs()))
        }
        ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Tiff => None,
    }
}

/// Room for the largest allowed image at 16 bits and four channels, once.
fn image_limits(limits: &DecodeLimits) -> image::Limits {
    let mut allowance = image::Limits::no_limits();
    allowance.max_alloc = Some(limits.max_pixels.saturating_mul(8).saturating_add(OVERHEAD));
    allowance
}

fn refusal(format: ImageFormat, error: ImageError) -> DecodeError {
    match error {
        ImageError::Unsupported(error) => DecodeError::unsupported(format, error.to_string()),
        ImageError::Limits(_) => {
            DecodeError::unsupported(format, "decoding it takes more memory than its size allows")
        }
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::corrupt(format, "it ends before its last pixel")
        }
        error => DecodeError::corrupt(format, error.to_string()),
    }
}
