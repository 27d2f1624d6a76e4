//! TIFF through the `tiff` crate, which only gets files whose geometry [`structure`] has checked.

mod structure;

use image::ColorType;
use tiff::TiffError;
use tiff::decoder::{Decoder, Limits};

use super::limits::memory;
use super::until::Source;
use super::{Buffer, DecodeError, DecodeLimits, Decoded, ImageHeader, Until, samples};
use crate::image::{ImageFormat, Orientation};
use structure::Structure;

/// Limit on the memory for a tag's values, in bytes.
const TAG_BYTES: usize = 1 << 20;
/// Memory per strip or tile in the decoder's lists, in bytes.
const PART_BYTES: u64 = 128;

/// A TIFF ready to be decoded.
pub(super) struct Opened<'a> {
    pub(super) header: ImageHeader,
    decoder: Decoder<Source<'a>>,
    structure: Structure,
    pixels: Pixels,
    until: Until,
}

#[derive(Clone, Copy, Debug)]
enum Pixels {
    /// Black and white, eight pixels per byte.
    Bits,
    Of(ColorType),
    /// Whether samples have 16 bits.
    Cmyk {
        wide: bool,
    },
}

impl Pixels {
    fn of(color: tiff::ColorType, bits: u64) -> Option<Self> {
        let wide = bits == 16;
        Some(match (color, bits) {
            (tiff::ColorType::Gray(1), 1) => Self::Bits,
            (_, 1) => return None,
            (tiff::ColorType::CMYK(_), _) => Self::Cmyk { wide },
            (tiff::ColorType::Gray(_), _) => Self::Of(if wide { ColorType::L16 } else { ColorType::L8 }),
            (tiff::ColorType::GrayA(_), _) => Self::Of(if wide { ColorType::La16 } else { ColorType::La8 }),
            (tiff::ColorType::RGB(_), _) => Self::Of(if wide { ColorType::Rgb16 } else { ColorType::Rgb8 }),
            (tiff::ColorType::RGBA(_), _) => {
                Self::Of(if wide { ColorType::Rgba16 } else { ColorType::Rgba8 })
            }
            _ => return None,
        })
    }
}

/// Reads the headers and checks them against `limits`.
pub(super) fn open<'a>(
    bytes: &'a [u8],
    limits: &DecodeLimits,
    until: Until,
) -> Result<Opened<'a>, DecodeError> {
    let structure = structure::read(bytes, limits)?;
    let refusal = |error| refusal(error, until);
    let (width, height) = (structure.width, structure.height);
    let mut decoder = Decoder::new(Source::new(bytes, until)).map_err(refusal)?;
    if decoder.dimensions().map_err(refusal)? != (width, height) {
        return Err(DecodeError::corrupt(ImageFormat::Tiff, "its headers declare different sizes"));
    }
    let color = decoder.colortype().map_err(refusal)?;
    let pixels = Pixels::of(color, structure.bits).ok_or_else(|| {
        DecodeError::unsupported(
            ImageFormat::Tiff,
            format!("pixels of type {color:?}; send grey, RGB or CMYK"),
        )
    })?;
    if structure.planar && !matches!(pixels, Pixels::Of(_)) {
        return Err(DecodeError::unsupported(ImageFormat::Tiff, "CMYK in separate planes"));
    }
    let orientation =
        structure.orientation.and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?));
    let opened = Opened {
        header: ImageHeader {
            format: ImageFormat::Tiff,
            width,
            height,
            orientation: orientation.unwrap_or_default(),
            decode_memory: 0,
        },
        decoder,
        structure,
        pixels,
        until,
    };
    let needed = opened.memory();
    let decode_memory = memory::accepted(ImageFormat::Tiff, (width, height), needed)?;
    Ok(Opened { header: ImageHeader { decode_memory, ..opened.header }, ..opened })
}

impl Opened<'_> {
    /// Bytes of the samples as the decoder outputs them.
    fn sample_bytes(&self) -> usize {
        match self.pixels {
            Pixels::Bits => (self.header.width as usize).div_ceil(8) * self.header.height as usize,
            Pixels::Of(color) => usize::from(color.bytes_per_pixel()) * self.header.pixels(),
            Pixels::Cmyk { wide } => (if wide { 8 } else { 4 }) * self.header.pixels(),
        }
    }

    fn memory(&self) -> u64 {
        let pixels = 3 * self.header.pixels() as u64;
        let buffers = match (self.structure.planar, self.pixels) {
            (true, _) | (_, Pixels::Bits) => pixels + self.sample_bytes() as u64,
            _ => pixels.max(self.sample_bytes() as u64),
        };
        memory::BASE + buffers + PART_BYTES * self.structure.parts + 4 * self.structure.row_bytes
    }

    /// Decodes to RGB in `pixels`; `scratch` holds what cannot be converted in place.
    pub(super) fn decode(
        mut self,
        pixels: &mut Buffer,
        scratch: &mut Buffer,
    ) -> Result<Decoded, DecodeError> {
        let (count, bytes) = (self.header.pixels(), self.sample_bytes());
        let mut limits = Limits::default();
        limits.decoding_buffer_size = bytes;
        limits.intermediate_buffer_size = usize::MAX;
        limits.ifd_value_size = TAG_BYTES;
        self.decoder = self.decoder.with_limits(limits);
        let wide = self.structure.bits == 16;
        let until = self.until;
        let refusal = |error| refusal(error, until);
        match self.pixels {
            Pixels::Bits => {
                let raw = scratch.take(bytes);
                self.decoder.read_image_bytes(raw).map_err(refusal)?;
                let rgb = pixels.take(3 * count);
                let width = self.header.width as usize;
                for (line, row) in rgb.chunks_exact_mut(3 * width).zip(raw.chunks_exact(width.div_ceil(8))) {
                    for (at, pixel) in line.chunks_exact_mut(3).enumerate() {
                        pixel.fill(if row[at / 8] << (at % 8) & 0x80 != 0 { 255 } else { 0 });
                    }
                }
            }
            Pixels::Of(color) if self.structure.planar => {
                let raw = scratch.take(bytes);
                self.decoder.read_image_bytes(raw).map_err(refusal)?;
                let planes = usize::from(color.channel_count());
                samples::planes_to_rgb(planes, wide, raw, pixels.take(3 * count));
            }
            Pixels::Of(color) => {
                let raw = pixels.take(bytes.max(3 * count));
                self.decoder.read_image_bytes(&mut raw[..bytes]).map_err(refusal)?;
                samples::to_rgb(color, raw, count);
            }
            Pixels::Cmyk { wide } => {
                let raw = pixels.take(bytes);
                self.decoder.read_image_bytes(raw).map_err(refusal)?;
                samples::cmyk_to_rgb(wide, raw, count);
            }
        }
        Ok(self.header.into())
    }
}

fn refusal(error: TiffError, until: Until) -> DecodeError {
    if let Err(late) = until.check() {
        return late;
    }
    match error {
        TiffError::UnsupportedError(error) => DecodeError::unsupported(ImageFormat::Tiff, error.to_string()),
        TiffError::LimitsExceeded => DecodeError::exceeds_memory(ImageFormat::Tiff),
        TiffError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::truncated(ImageFormat::Tiff)
        }
        error => DecodeError::corrupt(ImageFormat::Tiff, error.to_string()),
    }
}
