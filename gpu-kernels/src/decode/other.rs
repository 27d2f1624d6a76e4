//! WebP, BMP and GIF through the `image` crate.

use image::codecs::{bmp, gif, webp};
use image::{ColorType, ImageDecoder, ImageError};

use super::limits::memory;
use super::until::Source;
use super::{
    Buffer, DecodeError, DecodeLimits, Decoded, ImageHeader, Until, exif_orientation, riff, samples, vp8l,
};
use crate::image::{ImageFormat, Orientation};

/// Limit on the memory for the Huffman codes of a WebP: about two thousand groups of codes, which encoders do not reach.
const MAX_CODES: u64 = 32 << 20;

/// An image whose headers are within the limits, ready to be decoded.
pub(super) struct Opened<'a> {
    pub(super) header: ImageHeader,
    color: ColorType,
    decoder: Box<dyn ImageDecoder + 'a>,
    until: Until,
    codes: Option<Codes<'a>>,
}

/// The lossless bitstream of a WebP, whose Huffman codes are checked when it is decoded, and their memory limit.
struct Codes<'a> {
    stream: riff::Lossless<'a>,
    most: u64,
}

impl Opened<'_> {
    /// Decodes to RGB in `pixels`.
    pub(super) fn decode(self, pixels: &mut Buffer) -> Result<Decoded, DecodeError> {
        let Self { header, color, decoder, until, codes } = self;
        if let Some(codes) = codes {
            // This takes a fraction of the decoding time: the clock is checked before and after.
            until.check()?;
            codes.check()?;
            until.check()?;
        }
        // The pixel limit was checked, so the size fits in memory and in usize.
        let count = header.pixels();
        let buffer = pixels.take(samples::room(color, count));
        let samples = &mut buffer[..usize::from(color.bytes_per_pixel()) * count];
        if matches!(header.format, ImageFormat::Gif | ImageFormat::Bmp) {
            // Pixels whose colour is not in the palette, and those skipped by a run, keep the buffer's content, which would be
            // the previous image.
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

/// Reads the headers, checks them against `limits` and returns a decoder for the pixels.
pub(super) fn open<'a>(
    format: ImageFormat,
    bytes: &'a [u8],
    limits: &DecodeLimits,
    until: Until,
) -> Result<Opened<'a>, DecodeError> {
    let (mut exif, mut lossless, mut animated) = (None, None, false);
    // Sizes at fixed offsets are checked before a decoder is created, which may already allocate.
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
        // An invalid tag does not affect the pixels.
        _ => decoder.orientation().ok().and_then(|value| Orientation::from_exif(value.to_exif())),
    };
    let room = samples::room(color, width as usize * height as usize) as u64;
    let needed = room + memory_beside(format, bytes, (width, height), animated)?;
    // The memory of Huffman codes depends on the bitstream, which is not parsed here because reading headers must be quick. So
    // their limit is accounted for, or what remains of the memory limit.
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

/// Memory for decoding besides the samples.
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
                let frame = first_frame(bytes)
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
                // A profile is collected in a buffer that doubles.
                4 * area + 2 * frame.extensions as u64
            }
            // Luma and chroma, alpha, and a copy of the data; for an animation also the frame and its canvas.
            ImageFormat::WebP => {
                let each = if animated { 16 } else { 8 };
                each * pixels + bytes.len() as u64
            }
            _ => 32 * u64::from(width),
        })
}

impl Codes<'_> {
    /// Parses the bitstream up to its pixels.
    ///
    /// # Errors
    /// [`DecodeError`] if the codes are invalid or exceed their memory limit.
    fn check(&self) -> Result<(), DecodeError> {
        let (format, most) = (ImageFormat::WebP, self.most);
        let riff::Lossless { bits, size, has_header } = self.stream;
        match vp8l::code_memory(bits, size, has_header, most) {
            None => Err(DecodeError::corrupt(format, "its Huffman codes are invalid")),
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
        // Decoded by other modules.
        ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Tiff => {
            return Err(ImageError::Unsupported(image::error::ImageFormatHint::Unknown.into()));
        }
    })
}

/// Width and height where the format stores them at a fixed offset.
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
        ImageError::Limits(_) => DecodeError::exceeds_memory(format),
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::truncated(format)
        }
        error => DecodeError::corrupt(format, error.to_string()),
    }
}

/// The first frame of a GIF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FirstFrame {
    /// Bytes of extensions (comments, profiles) before it, which the decoder may keep.
    extensions: usize,
    width: u32,
    height: u32,
}

/// `None` if the file ends before its first frame, or has none.
fn first_frame(bytes: &[u8]) -> Option<FirstFrame> {
    let head = 13 + palette_bytes(*bytes.get(10)?);
    let mut at = head;
    loop {
        match *bytes.get(at..)?.first()? {
            0x21 => {
                at = after_blocks(bytes, at + 2)?;
            }
            0x2C => {
                let &[w0, w1, h0, h1] = bytes.get(at + 5..)?.first_chunk()?;
                return Some(FirstFrame {
                    extensions: at - head,
                    width: u32::from(u16::from_le_bytes([w0, w1])),
                    height: u32::from(u16::from_le_bytes([h0, h1])),
                });
            }
            _ => return None,
        }
    }
}

fn palette_bytes(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

/// The position after a chain of data blocks, each prefixed by its length, and the empty block that ends it.
fn after_blocks(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    }
}
