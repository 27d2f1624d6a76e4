//! Which JPEGs nvJPEG may decode: those that the CPU would decode to the same picture; and the planes to which they decode, in one
//! block of device memory.

use super::NvJpegBackend;
use crate::decode::jpeg::{Colour, EntropyWalk, JpegDefect, jpeg_header, read_strictly};
use crate::decode::{DecodeLimits, JpegHeader};
use crate::image::ImageFormat;
use crate::preprocess::PixelLayout;

/// Alignment of a plane in its block, in bytes.
const PLANE_ALIGNMENT: u64 = 256;

/// The part of a file that nvJPEG may decode, and the planes to which it decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eligible {
    /// Its headers, including the orientation.
    pub header: JpegHeader,
    /// Its planes.
    pub planes: JpegPlanes,
    /// Bytes up to and including its EOI. Pass no more to nvJPEG: cameras append other data.
    pub length: usize,
}

/// Why a JPEG is left to the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Ineligible {
    /// It is not a JPEG, has invalid headers, or exceeds the limits.
    #[error("it is rejected by its headers")]
    Refused,
    /// Arithmetic or lossless coding; with [`Hardware`](NvJpegBackend::Hardware), any but baseline.
    #[error("the engine does not support its coding")]
    Coding,
    /// Several scans, with [`Hardware`](NvJpegBackend::Hardware).
    #[error("it has several scans")]
    SeveralScans,
    /// Four components, RGB, or ambiguous colour markers.
    #[error("its colours are neither grey nor unambiguously YCbCr")]
    Colour,
    /// Not 4:4:4, 4:2:2, 4:2:0 or 4:4:0, or written with unusual factors.
    #[error("its subsampling is unusual")]
    Sampling,
    /// Bytes between segments, unknown segments, or contradicting parameters.
    #[error("its segments do not conform to the standard")]
    Structure,
    /// A table is invalid, missing or not allowed in baseline.
    #[error("its tables are unusual or invalid")]
    Tables,
    /// It does not end in an EOI, or lacks scans or restart markers.
    #[error("a part of it is missing")]
    Incomplete,
    /// Its Huffman codes are invalid, or don't end with its last pixel.
    #[error("its entropy-coded data is invalid, or not that of one baseline scan")]
    Entropy,
}

impl Ineligible {
    /// The value of a metric's label, in snake case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Coding => "coding",
            Self::SeveralScans => "several_scans",
            Self::Colour => "colour",
            Self::Sampling => "sampling",
            Self::Structure => "structure",
            Self::Tables => "tables",
            Self::Incomplete => "incomplete",
            Self::Entropy => "entropy",
        }
    }
}

impl From<JpegDefect> for Ineligible {
    fn from(defect: JpegDefect) -> Self {
        match defect {
            JpegDefect::Structure => Self::Structure,
            JpegDefect::Tables => Self::Tables,
            JpegDefect::Incomplete => Self::Incomplete,
        }
    }
}

/// Whether nvJPEG may decode a JPEG, by its segments. Its entropy-coded data is only searched for markers: damage within it is
/// only detected by [`EntropyCheck`].
///
/// # Errors
/// [`Ineligible`]: the CPU decodes or rejects it.
pub fn eligible(bytes: &[u8], backend: NvJpegBackend, limits: &DecodeLimits) -> Result<Eligible, Ineligible> {
    if limits.format_of(bytes).ok() != Some(ImageFormat::Jpeg) {
        return Err(Ineligible::Refused);
    }
    let header = jpeg_header(bytes, limits).map_err(|_| Ineligible::Refused)?;
    if header.arithmetic || header.lossless {
        return Err(Ineligible::Coding);
    }
    if header.components == 4 {
        return Err(Ineligible::Colour);
    }
    let jpeg = read_strictly(bytes)?;
    if backend == NvJpegBackend::Hardware {
        if !jpeg.baseline {
            return Err(Ineligible::Coding);
        }
        if jpeg.scans > 1 {
            return Err(Ineligible::SeveralScans);
        }
    }
    let (shift_x, shift_y) = match (jpeg.colour, jpeg.sampling) {
        (Colour::Other, _) => return Err(Ineligible::Colour),
        (Colour::Grey, [0x11, ..]) => (0, 0),
        (Colour::YCbCr, [luma, 0x11, 0x11]) => match luma {
            0x11 => (0, 0),
            0x21 => (1, 0),
            0x22 => (1, 1),
            0x12 => (0, 1),
            _ => return Err(Ineligible::Sampling),
        },
        _ => return Err(Ineligible::Sampling),
    };
    let JpegHeader { width, height, components, .. } = header;
    let planes = JpegPlanes { width, height, components, shift_x, shift_y };
    Ok(Eligible { header, planes, length: jpeg.end })
}

/// Checks the Huffman codes of baseline JPEGs without decoding their values. The CPU also decodes every JPEG that passes and
/// is [`eligible()`]. It reuses tables and buffers; owned by one thread.
#[derive(Debug, Default)]
pub struct EntropyCheck {
    walk: EntropyWalk,
}

impl EntropyCheck {
    /// Checks an eligible JPEG.
    ///
    /// # Errors
    /// [`Ineligible::Entropy`], also for a progressive JPEG and one of several scans, whose codes are not checked.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), Ineligible> {
        self.walk.run(bytes).ok_or(Ineligible::Entropy)
    }

    /// Memory that is kept for the next image, in bytes.
    pub fn retained_bytes(&self) -> usize {
        self.walk.retained_bytes()
    }
}

/// The planes of a JPEG at full size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JpegPlanes {
    /// Width of luma, pixels.
    pub width: u32,
    /// Height of luma, pixels.
    pub height: u32,
    /// 1 (grey) or 3 (YCbCr).
    pub components: u8,
    /// 1 where chroma has half the width of luma, else 0.
    pub shift_x: u32,
    /// 1 where chroma has half the height of luma, else 0.
    pub shift_y: u32,
}

/// The planes of one image in device memory: address and pitch (bytes per row) of Y, Cb and Cr; (0, 0) for those that a grey
/// image does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JpegDestination {
    /// Address and pitch per plane.
    pub planes: [(u64, u32); 3],
}

impl JpegPlanes {
    /// Width and height of each plane, pixels; (0, 0) for those that a grey image does not have.
    pub fn sizes(&self) -> [(u32, u32); 3] {
        let luma = (self.width, self.height);
        if self.components == 1 {
            return [luma, (0, 0), (0, 0)];
        }
        let shrunk = |side: u32, shift| if shift == 0 { side } else { side.div_ceil(2) };
        let chroma = (shrunk(self.width, self.shift_x), shrunk(self.height, self.shift_y));
        [luma, chroma, chroma]
    }

    /// Device memory of all planes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.offsets().1
    }

    /// The position of the planes in a block of [`bytes`](Self::bytes) at the device address `base`, a multiple of 256.
    pub fn destination(&self, base: u64) -> JpegDestination {
        let (offsets, _) = self.offsets();
        let pitches = self.pitches();
        let plane = |index: usize| match pitches[index] {
            0 => (0, 0),
            pitch => (base + offsets[index], pitch),
        };
        JpegDestination { planes: [plane(0), plane(1), plane(2)] }
    }

    /// The layout of the planes at [`destination`](Self::destination).
    pub fn layout(&self, base: u64) -> PixelLayout {
        let JpegDestination { planes } = self.destination(base);
        self.layout_of(planes)
    }

    fn layout_of(&self, planes: [(u64, u32); 3]) -> PixelLayout {
        match self.components {
            1 => PixelLayout::Grey { plane: planes[0] },
            _ => PixelLayout::YCbCr { planes, shift_x: self.shift_x, shift_y: self.shift_y },
        }
    }

    fn pitches(&self) -> [u32; 3] {
        self.layout_of([(0, 0); 3]).least_pitches(self.width)
    }

    /// Offset of each plane, and the end of the last one.
    fn offsets(&self) -> ([u64; 3], u64) {
        let mut end = 0;
        let mut offsets = [0; 3];
        for ((offset, (_, height)), pitch) in offsets.iter_mut().zip(self.sizes()).zip(self.pitches()) {
            *offset = end;
            end = (end + u64::from(height) * u64::from(pitch)).next_multiple_of(PLANE_ALIGNMENT);
        }
        (offsets, end)
    }
}
