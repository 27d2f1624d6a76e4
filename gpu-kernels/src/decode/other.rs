//! WebP, BMP and GIF through the `image` crate.

use image::codecs::{bmp, gif, webp};
use image::{ColorType, ImageDecoder, ImageError};

use super::buffer::Buffer;
use super::reader::Source;
use super::{
    DecodeError, DecodeLimits, Decoded, ImageHeader, Until, exif_orientation, memory, riff, samples, vp8l,
};
use crate::image::{ImageFormat, Orientation};

/// Memory that the Huffman codes of a WebP may take at most: some two thousand groups of them, which encoders do not reach.
const MAX_CODES: u64 = 32 << 20;

/// An image whose headers keep to the limits, ready to be decoded.
pub(super) struct Opened<'a> {
    pub(super) header: ImageHeader,
    color: ColorType,
    decoder: Box<dyn ImageDecoder + 'a>,
    until: Until,
    codes: Option<Codes<'a>>,
}

/// The lossless bitstream of a WebP, whose Huffman codes are looked at when it is decoded, and the memory that they may take.
struct Codes<'a> {
    stream: riff::Lossless<'a>,
    most: u64,
}

impl Opened<'_> {
    /// Decodes to RGB, in `pixels`.
    pub(super) fn decode(self, pixels: &mut Buffer) -> Result<Decoded, DecodeError> {
        let Self { header, color, decoder, until, codes } = self;
        if let Some(codes) = codes {
            // It takes a fraction of what decoding does: the time is looked at before and after.
            until.check()?;
            codes.check()?;
            until.check()?;
        }
        // The pixel limit has been held, so that the size fits in memory and in usize.
        let count = header.pixels();
        let buffer = pixels.take(samples::room(color, count));
        let samples = &mut buffer[..usize::from(color.bytes_per_pixel()) * count];
        if matches!(header.format, ImageFormat::Gif | ImageFormat::Bmp) {
            // Pixels whose colour is not in the palette, or that a run of pixels leaves out, keep what the buffer holds, which would
            // be the image before.
            samples.fill(0);
        }
        decoder.read_image_boxed(samples).map_err(|error| refusal(header.format, error, until))?;
        if header.format == ImageFormat::Bmp && color == ColorType::Rgba8 {
            samples::without_void_alpha(samples);
        }
        samples::to_rgb(color, buffer, count);
        Ok(header.into())
    }
}

/// Reads the headers, holds them against `limits` and returns a decoder that is ready for its pixels.
pub(super) fn open<'a>(
    format: ImageFormat,
    bytes: &'a [u8],
    limits: &DecodeLimits,
    until: Until,
) -> Result<Opened<'a>, DecodeError> {
    let (mut exif, mut lossless, mut animated) = (None, None, false);
    // Sizes at fixed places are looked at before a decoder is set up, which may already allocate.
    if format == ImageFormat::WebP {
        let chunks = riff::read(bytes);
        for (width, height) in chunks.sizes {
            limits.check_size(format, width, height)?;
        }
        lossless = chunks.lossless.map_err(|detail| DecodeError::corrupt(format, detail))?;
        (exif, animated) = (chunks.exif, chunks.animated);
    } else if let Some((width, height)) = declared_size(format, bytes) {
        limits.check_size(format, width, height)?;
    }

    let source = Source::new(bytes, until);
    let mut decoder = decoder(format, source).map_err(|error| refusal(format, error, until))?;
    let (width, height) = decoder.dimensions();
    limits.check_size(format, width, height)?;
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
    let room = samples::room(color, width as usize * height as usize) as u64;
    let needed = room + memory_beside(format, bytes, (width, height), animated)?;
    // How much memory Huffman codes take is told from the bitstream, which is not followed here: reading headers has to be quick. So
    // they are given the most that they may take, or what there is room for.
    let codes =
        lossless.map(|stream| Codes { stream, most: memory::left((width, height), needed).min(MAX_CODES) });
    let needed = needed + codes.as_ref().map_or(0, |codes| codes.most);
    let header = ImageHeader {
        format,
        width,
        height,
        orientation: orientation.unwrap_or_default(),
        decode_memory: memory::accepted(format, (width, height), needed)?,
    };
    Ok(Opened { header, color, decoder, until, codes })
}

/// Memory that decoding takes beside the samples.
fn memory_beside(
    format: ImageFormat,
    bytes: &[u8],
    (width, height): (u32, u32),
    animated: bool,
) -> Result<u64, DecodeError> {
    let pixels = memory::pixels(width, height);
    Ok(memory::BASE
        + match format {
            // The frame, where it does not fill its canvas.
            ImageFormat::Gif => {
                let frame = super::gif::first_frame(bytes)
                    .ok_or_else(|| DecodeError::corrupt(format, "it ends before its first frame"))?;
                let area = memory::pixels(frame.width, frame.height);
                if area > pixels {
                    return Err(DecodeError::unsupported(
                        format,
                        format!(
                            "a frame of {} x {} pixels on a canvas of {width} x {height}",
                            frame.width, frame.height
                        ),
                    ));
                }
                // A profile is collected piece by piece in a buffer that doubles.
                4 * area + 2 * frame.extensions as u64
            }
            // Luma and chroma, alpha, and a copy of the data; of an animation the frame and its canvas too.
            ImageFormat::WebP => {
                let each = if animated { 16 } else { 8 };
                each * pixels + bytes.len() as u64
            }
            _ => 32 * u64::from(width),
        })
}

impl Codes<'_> {
    /// Follows the bitstream up to its pixels.
    ///
    /// # Errors
    /// [`DecodeError`] where the codes are not sound or take more memory than they may.
    fn check(&self) -> Result<(), DecodeError> {
        let (format, most) = (ImageFormat::WebP, self.most);
        let riff::Lossless { bits, size, has_header } = self.stream;
        match vp8l::code_memory(bits, size, has_header, most) {
            None => Err(DecodeError::corrupt(format, "its Huffman codes are not sound")),
            Some(memory) if memory > most => Err(DecodeError::unsupported(
                format,
                format!("Huffman codes that take more than {most} bytes of memory"),
            )),
            Some(_) => Ok(()),
        }
    }
}

fn decoder<'a>(format: ImageFormat, source: Source<'a>) -> Result<Box<dyn ImageDecoder + 'a>, ImageError> {
    Ok(match format {
        ImageFormat::WebP => Box::new(webp::WebPDecoder::new(source)?),
        ImageFormat::Bmp => Box::new(bmp::BmpDecoder::new(source)?),
        ImageFormat::Gif => Box::new(gif::GifDecoder::new(source)?),
        // Other modules decode them.
        ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Tiff => {
            return Err(ImageError::Unsupported(image::error::ImageFormatHint::Unknown.into()));
        }
    })
}

/// Width and height where the format keeps them at a fixed place.
fn declared_size(format: ImageFormat, bytes: &[u8]) -> Option<(u32, u32)> {
    let two = |at: usize| Some(u32::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?)));
    let four = |at: usize| Some(*bytes.get(at..)?.first_chunk::<4>()?);
    match format {
        ImageFormat::Gif => Some((two(6)?, two(8)?)),
        ImageFormat::Bmp if four(14)? == [12, 0, 0, 0] => Some((two(18)?, two(20)?)),
        // A negative height means that the top row comes first.
        ImageFormat::Bmp => {
            Some((i32::from_le_bytes(four(18)?).unsigned_abs(), i32::from_le_bytes(four(22)?).unsigned_abs()))
        }
        _ => None,
    }
}

fn refusal(format: ImageFormat, error: ImageError, until: Until) -> DecodeError {
    if let Err(late) = until.check() {
        return late;
    }
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
