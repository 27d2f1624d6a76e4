//! The headers of a JPEG up to its first scan, checked before the library reads them.

use super::markers::{Markers, Segment, code, more_scans_than};
use super::scaled_baseline::{MAX_SCAN, SEGMENT_BYTES};
use crate::decode::limits::memory;
use crate::decode::{DecodeError, DecodeLimits, ImageHeader};
use crate::image::{ImageFormat, Orientation};

/// The headers of a JPEG that [`Decoder`](crate::Decoder) can decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JpegHeader {
    /// Width of the frame.
    pub width: u32,
    /// Height of the frame.
    pub height: u32,
    /// From the EXIF segment, if it is valid.
    pub orientation: Orientation,
    /// 1 (grey), 3 (YCbCr or RGB) or 4 (CMYK or YCCK).
    pub components: u8,
    /// Progressive coding (SOF2, SOF10).
    pub progressive: bool,
    /// Arithmetic in place of Huffman coding (SOF9, SOF10).
    pub arithmetic: bool,
    /// Lossless coding (SOF3), which has no DCT and so cannot be decoded at a smaller scale.
    pub lossless: bool,
    /// More than one scan, so that the library buffers the coefficients of the whole image.
    pub several_scans: bool,
    /// Memory for decoding besides the result, in bytes: rows, coefficients of the whole image if there are several scans, and
    /// a copy of a plain image's data.
    pub working_memory: u64,
}

impl JpegHeader {
    /// Baseline Huffman coding of three components in one scan, as nearly every camera sends.
    pub(super) fn is_plain(&self) -> bool {
        self.components == 3 && !(self.progressive || self.arithmetic || self.lossless || self.several_scans)
    }
}

impl From<JpegHeader> for ImageHeader {
    fn from(header: JpegHeader) -> Self {
        let JpegHeader { width, height, orientation, .. } = header;
        let channels = if header.components == 4 { 4 } else { 3 };
        let decode_memory = header.working_memory + channels * memory::pixels(width, height);
        Self { format: ImageFormat::Jpeg, width, height, orientation, decode_memory }
    }
}

/// Reads the headers of a JPEG and rejects unsupported ones.
///
/// # Errors
/// [`DecodeError::CorruptImage`], [`DecodeError::UnsupportedImage`], [`DecodeError::TooManyPixels`] and
/// [`DecodeError::TooManyScans`].
pub fn jpeg_header(bytes: &[u8], limits: &DecodeLimits) -> Result<JpegHeader, DecodeError> {
    let mut markers = Markers::new(bytes);
    let mut frame = None;
    let mut orientation = None;
    loop {
        let segment = markers.next_segment().ok_or_else(|| corrupt("it ends within its headers"))?;
        match segment {
            Segment { code: code::APP1, body } => {
                orientation = orientation.or_else(|| exif_orientation(body));
            }
            Segment { code: code::SOS, body } => {
                let (header, sampling): (JpegHeader, _) =
                    frame.ok_or_else(|| corrupt("a scan comes before the frame header"))?;
                let in_first_scan = *body.first().ok_or_else(|| corrupt("its scan header is empty"))?;
                let several_scans = header.progressive || in_first_scan < header.components;
                let max = limits.scans_of(header.width, header.height);
                if several_scans && more_scans_than(max, markers) {
                    return Err(DecodeError::TooManyScans { max });
                }
                let header =
                    JpegHeader { several_scans, orientation: orientation.unwrap_or_default(), ..header };
                let working_memory = working_memory(&header, sampling, bytes.len());
                let header = JpegHeader { working_memory, ..header };
                let needed = ImageHeader::from(header).decode_memory;
                memory::accepted(ImageFormat::Jpeg, (header.width, header.height), needed)?;
                return Ok(header);
            }
            Segment { code: code::EOI, .. } => return Err(corrupt("it has no image data")),
            Segment { code: code::SOI, .. } => {
                return Err(corrupt("a second image begins within its headers"));
            }
            segment if segment.is_frame() => {
                if frame.is_some() {
                    return Err(corrupt("it has two frame headers"));
                }
                frame = Some(read_frame(segment, limits)?);
            }
            _ => {}
        }
    }
}

/// Sampling factors of each component: across, down.
type Sampling = [(u64, u64); 4];

/// Memory for decoding besides the result, in bytes.
fn working_memory(header: &JpegHeader, sampling: Sampling, length: usize) -> u64 {
    let (width, height) = (u64::from(header.width), u64::from(header.height));
    let components = &sampling[..usize::from(header.components).min(sampling.len())];
    let across = components.iter().map(|factors| factors.0).max().unwrap_or(1);
    let down = components.iter().map(|factors| factors.1).max().unwrap_or(1);
    let (columns, rows) = (width.div_ceil(8 * across), height.div_ceil(8 * down));
    let blocks: u64 = components.iter().map(|(across, down)| across * down).sum::<u64>() * columns * rows;
    let whole = match (header.several_scans, header.lossless) {
        // 64 coefficients of two bytes.
        (true, false) => 128 * blocks,
        (true, true) => 64 * blocks,
        _ => 0,
    };
    // Rows of blocks being upsampled: of each component up to 8 * 4 lines, and the adjacent ones.
    let lines = 8 * across * columns * components.len() as u64 * 64;
    let copy = if header.is_plain() {
        MAX_SCAN.min(length) as u64 + SEGMENT_BYTES as u64 * columns * rows
    } else {
        0
    };
    memory::BASE + whole + lines + copy
}

fn read_frame(segment: Segment<'_>, limits: &DecodeLimits) -> Result<(JpegHeader, Sampling), DecodeError> {
    let &[precision, h1, h0, w1, w0, components, ref specifications @ ..] = segment.body else {
        return Err(corrupt("its frame header is too short"));
    };
    let width = u32::from(u16::from_be_bytes([w1, w0]));
    let height = u32::from(u16::from_be_bytes([h1, h0]));
    let (progressive, arithmetic, lossless) = match segment.code & 0x0F {
        0 | 1 => (false, false, false),
        2 => (true, false, false),
        3 => (false, false, true),
        9 => (false, true, false),
        10 => (true, true, false),
        11 => return Err(unsupported("lossless JPEG with arithmetic coding")),
        _ => return Err(unsupported("hierarchical JPEG")),
    };
    limits.check_size(ImageFormat::Jpeg, width, height)?;
    if precision != 8 {
        return Err(unsupported(format!("{precision} bits per sample; send 8")));
    }
    if !matches!(components, 1 | 3 | 4) {
        return Err(unsupported(format!(
            "{components} colour components; send 1 (grey), 3 (colour) or 4 (CMYK)"
        )));
    }
    let mut sampling = [(1, 1); 4];
    for (factors, &[_, both, _]) in sampling.iter_mut().zip(specifications.as_chunks().0) {
        *factors = (u64::from(both >> 4).clamp(1, 4), u64::from(both & 15).clamp(1, 4));
    }
    if lossless && sampling != [(1, 1); 4] {
        return Err(unsupported("lossless JPEG with subsampled colours"));
    }
    let header = JpegHeader {
        width,
        height,
        orientation: Orientation::Upright,
        components,
        progressive,
        arithmetic,
        lossless,
        several_scans: false,
        working_memory: 0,
    };
    Ok((header, sampling))
}

fn exif_orientation(app1: &[u8]) -> Option<Orientation> {
    crate::decode::exif_orientation(app1.strip_prefix(b"Exif\0\0")?)
}

fn corrupt(detail: &str) -> DecodeError {
    DecodeError::corrupt(ImageFormat::Jpeg, detail)
}

fn unsupported(detail: impl Into<String>) -> DecodeError {
    DecodeError::unsupported(ImageFormat::Jpeg, detail)
}
