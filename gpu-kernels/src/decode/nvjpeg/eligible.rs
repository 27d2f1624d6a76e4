//! Which JPEGs nvJPEG may be given: those that the CPU would decode to the same picture.

use super::{JpegPlanes, NvJpegBackend};
use crate::decode::jpeg::{Colour, EntropyWalk, JpegDefect, jpeg_header, read_strictly};
use crate::decode::{DecodeLimits, JpegHeader};
use crate::image::ImageFormat;

/// What nvJPEG may be given of a file, and what that decodes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eligible {
    /// What its headers say, the orientation among it.
    pub header: JpegHeader,
    /// Its planes.
    pub planes: JpegPlanes,
    /// Bytes up to its EOI, that included. Give nvJPEG no more: what cameras append is not for it.
    pub length: usize,
}

/// Why the CPU decides on a JPEG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Ineligible {
    /// It is no JPEG, or its headers are refused, or it goes beyond the limits.
    #[error("it is refused by its headers")]
    Refused,
    /// Arithmetic or lossless coding; with [`Hardware`](NvJpegBackend::Hardware), any but baseline.
    #[error("its coding is not one that the engine reads")]
    Coding,
    /// Several scans, with [`Hardware`](NvJpegBackend::Hardware).
    #[error("it has several scans")]
    SeveralScans,
    /// Four components, RGB, or markers that leave the colours open.
    #[error("its colours are neither grey nor surely YCbCr")]
    Colour,
    /// Not 4:4:4, 4:2:2, 4:2:0 or 4:4:0, or written with unusual factors.
    #[error("its subsampling is unusual")]
    Sampling,
    /// Bytes between segments, unknown segments, or parameters that contradict each other.
    #[error("it is not put together by the book")]
    Structure,
    /// A table is unsound, missing or of a kind that baseline does not have.
    #[error("its tables are unusual or unsound")]
    Tables,
    /// It does not end in an EOI, or lacks scans or restart markers.
    #[error("a part of it is missing")]
    Incomplete,
    /// Its Huffman codes are not sound, or don't end where its last pixel does.
    #[error("its entropy-coded data is not sound, or not of one baseline scan")]
    Entropy,
}

impl Ineligible {
    /// A stable name for metrics, in snake case.
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
    fn from(oddity: JpegDefect) -> Self {
        match oddity {
            JpegDefect::Structure => Self::Structure,
            JpegDefect::Tables => Self::Tables,
            JpegDefect::Incomplete => Self::Incomplete,
        }
    }
}

/// Whether nvJPEG may be given a JPEG, from its segments. Its entropy-coded data is searched for markers alone: damage
/// within it only [`EntropyCheck`] finds.
///
/// # Errors
/// [`Ineligible`]: the CPU decides.
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

/// Follows the Huffman codes of baseline JPEGs, without decoding what they stand for. What passes, and was
/// [`eligible()`], the CPU decodes too. It keeps tables and buffers from image to image; one thread owns it.
#[derive(Debug, Default)]
pub struct EntropyCheck {
    walk: EntropyWalk,
}

impl EntropyCheck {
    /// Checks an eligible JPEG.
    ///
    /// # Errors
    /// [`Ineligible::Entropy`] also for a progressive JPEG and one of several scans, whose codes are not followed.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), Ineligible> {
        self.walk.run(bytes).ok_or(Ineligible::Entropy)
    }

    /// Bytes of memory that are kept for the next image.
    pub fn retained_bytes(&self) -> usize {
        self.walk.retained_bytes()
    }
}
