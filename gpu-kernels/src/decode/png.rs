//! PNG through the `png` crate itself, which can skip text and colour profiles, of which a file may hold millions or a
//! compressed gigabyte.

use png::{BitDepth, Decoder, DecodingError, Limits, Reader, Transformations};

use image::ColorType;

use super::limits::memory;
use super::until::Source;
use super::{Buffer, DecodeError, DecodeLimits, Decoded, ImageHeader, Until, exif_orientation, samples};
use crate::image::ImageFormat;

/// Limit on the memory for chunks besides pixels and rows: palette, EXIF.
const METADATA: u64 = 8 << 20;
/// Rows between two checks of the clock.
const ROWS: usize = 64;

/// A PNG whose headers are within the limits.
pub(super) struct Opened<'a> {
    pub(super) header: ImageHeader,
    color: ColorType,
    reader: Reader<Source<'a>>,
    until: Until,
}

/// Reads the headers up to the pixels and checks them against `limits`.
pub(super) fn open<'a>(
    bytes: &'a [u8],
    limits: &DecodeLimits,
    until: Until,
) -> Result<Opened<'a>, DecodeError> {
    // The size is at a fixed offset, and is checked before anything is allocated.
    let side = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let (Some(width), Some(height)) = (side(16), side(20)) else {
        return Err(DecodeError::corrupt(ImageFormat::Png, "it ends within its header"));
    };
    limits.check_size(ImageFormat::Png, width, height)?;
    // Two rows of up to eight bytes per pixel, and the window of Deflate.
    let beside = METADATA + 32 * u64::from(width);
    let most = Limits { bytes: usize::try_from(beside).unwrap_or(usize::MAX) };
    let mut decoder = Decoder::new_with_limits(Source::new(bytes, until), most);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND);
    let reader = decoder.read_info().map_err(|error| refusal(error, until))?;
    let info = reader.info();
    let frame = info.frame_control.map(|frame| (frame.width, frame.height));
    if info.size() != (width, height) || frame.is_some_and(|size| size != (width, height)) {
        return Err(DecodeError::corrupt(ImageFormat::Png, "its headers contradict each other"));
    }
    let orientation = info.exif_metadata.as_deref().and_then(exif_orientation).unwrap_or_default();
    let color = match reader.output_color_type() {
        (png::ColorType::Grayscale, BitDepth::Eight) => ColorType::L8,
        (png::ColorType::Grayscale, BitDepth::Sixteen) => ColorType::L16,
        (png::ColorType::GrayscaleAlpha, BitDepth::Eight) => ColorType::La8,
        (png::ColorType::GrayscaleAlpha, BitDepth::Sixteen) => ColorType::La16,
        (png::ColorType::Rgb, BitDepth::Eight) => ColorType::Rgb8,
        (png::ColorType::Rgb, BitDepth::Sixteen) => ColorType::Rgb16,
        (png::ColorType::Rgba, BitDepth::Eight) => ColorType::Rgba8,
        (png::ColorType::Rgba, BitDepth::Sixteen) => ColorType::Rgba16,
        // The transformation produces no others.
        (color, depth) => {
            let detail = format!("pixels of type {color:?} of {depth:?} bits");
            return Err(DecodeError::unsupported(ImageFormat::Png, detail));
        }
    };
    let room = samples::room(color, width as usize * height as usize) as u64;
    let needed = memory::BASE + room + beside;
    let header = ImageHeader {
        format: ImageFormat::Png,
        width,
        height,
        orientation,
        decode_memory: memory::accepted(ImageFormat::Png, (width, height), needed)?,
    };
    Ok(Opened { header, color, reader, until })
}

impl Opened<'_> {
    /// Decodes to RGB in `pixels`.
    pub(super) fn decode(self, pixels: &mut Buffer) -> Result<Decoded, DecodeError> {
        let Self { header, color, mut reader, until } = self;
        let count = header.pixels();
        let buffer = pixels.take(samples::room(color, count));
        let samples = &mut buffer[..usize::from(color.bytes_per_pixel()) * count];
        if reader.info().interlaced {
            reader.next_frame(samples).map_err(|error| refusal(error, until))?;
        } else {
            let row_bytes = usize::from(color.bytes_per_pixel()) * header.width as usize;
            for (number, row) in samples.chunks_exact_mut(row_bytes).enumerate() {
                if number % ROWS == 0 {
                    until.check()?;
                }
                let read = reader.read_row(row).map_err(|error| refusal(error, until))?;
                read.ok_or_else(|| {
                    DecodeError::corrupt(ImageFormat::Png, "it has fewer rows than its header says")
                })?;
            }
            // Reads the data to its end, including its checksum.
            reader.read_row(&mut []).map_err(|error| refusal(error, until))?;
        }
        if color.bytes_per_pixel() > color.channel_count() {
            samples.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| {
                *pair = u16::from_be_bytes(*pair).to_ne_bytes();
            });
        }
        samples::to_rgb(color, buffer, count);
        Ok(header.into())
    }
}

fn refusal(error: DecodingError, until: Until) -> DecodeError {
    if let Err(late) = until.check() {
        return late;
    }
    match error {
        DecodingError::LimitsExceeded => DecodeError::exceeds_memory(ImageFormat::Png),
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::truncated(ImageFormat::Png)
        }
        error => DecodeError::corrupt(ImageFormat::Png, error.to_string()),
    }
}
