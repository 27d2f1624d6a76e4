//! The parameters of the preprocess kernel: one descriptor per image and one for the tensor, with the layout in
//! kernels/preprocess.h.

use bytemuck::{Pod, Zeroable};

use super::{PreprocessSpec, ResizeCrop};
use crate::image::Orientation;

/// Rows begin at a multiple of this many bytes, and hold a multiple of this many pixels.
pub const ROW_GROUP: u32 = 4;

const SWAP_SIDES: u32 = 1;
const FLIP_COLUMNS: u32 = 2;
const FLIP_ROWS: u32 = 4;

/// The layout of an image in memory. Addresses are device addresses, pitches are bytes per row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelLayout {
    /// Red, green, blue, interleaved.
    Rgb {
        /// Address and pitch.
        plane: (u64, u32),
    },
    /// Luma and two chroma planes, full range (JFIF). A pixel's chroma is at its position shifted right.
    YCbCr {
        /// Address and pitch of Y, Cb and Cr.
        planes: [(u64, u32); 3],
        /// Bits by which a column is shifted: 1 where chroma has half the width.
        shift_x: u32,
        /// Bits by which a row is shifted.
        shift_y: u32,
    },
    /// Luma only.
    Grey {
        /// Address and pitch.
        plane: (u64, u32),
    },
}

impl PixelLayout {
    /// The minimum pitch of each plane for an image of this width; the kernel reads no byte beyond it.
    pub fn least_pitches(&self, width: u32) -> [u32; 3] {
        let padded = width.next_multiple_of(ROW_GROUP);
        match *self {
            Self::Rgb { .. } => [3 * padded, 0, 0],
            Self::YCbCr { shift_x, .. } => {
                let chroma = (padded >> shift_x).max(1).next_multiple_of(ROW_GROUP);
                [padded, chroma, chroma]
            }
            Self::Grey { .. } => [padded, 0, 0],
        }
    }
}

impl PixelLayout {
    /// Address and pitch of each existing plane, and the bits by which its rows are shifted.
    fn planes(&self) -> Vec<((u64, u32), u32)> {
        match *self {
            Self::Rgb { plane } | Self::Grey { plane } => vec![(plane, 0)],
            Self::YCbCr { planes: [luma, blue, red], shift_y, .. } => {
                vec![(luma, 0), (blue, shift_y), (red, shift_y)]
            }
        }
    }

    /// Whether an image of this size lies within a block of this many bytes, with offsets in place of addresses, and meets the
    /// kernel's alignment.
    pub fn fits(&self, (width, height): (u32, u32), bytes: usize) -> bool {
        let least = self.least_pitches(width);
        let group = u64::from(ROW_GROUP);
        let shifts = match *self {
            Self::YCbCr { shift_x, shift_y, .. } => shift_x.max(shift_y),
            _ => 0,
        };
        let within = |(((offset, pitch), shift), least): (((u64, u32), u32), u32)| {
            let rows = u64::from(height).div_ceil(1 << shift);
            let end = (rows - 1).checked_mul(u64::from(pitch)).and_then(|rows| rows.checked_add(offset));
            let end = end.and_then(|end| end.checked_add(u64::from(least)));
            offset % group == 0
                && u64::from(pitch) % group == 0
                && pitch >= least
                && end.is_some_and(|end| end <= bytes as u64)
        };
        width > 0 && height > 0 && shifts <= 2 && self.planes().into_iter().zip(least).all(within)
    }

    /// The same layout with its offsets relative to the address `base`.
    #[must_use]
    pub fn at(self, base: u64) -> Self {
        let from = |(offset, pitch): (u64, u32)| (base + offset, pitch);
        match self {
            Self::Rgb { plane } => Self::Rgb { plane: from(plane) },
            Self::Grey { plane } => Self::Grey { plane: from(plane) },
            Self::YCbCr { planes, shift_x, shift_y } => {
                Self::YCbCr { planes: planes.map(from), shift_x, shift_y }
            }
        }
    }
}

/// Element type of the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
}

impl Element {
    /// Bytes per value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// An image of a batch. Same layout as `WeirImage`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct ImageDescriptor {
    planes: [u64; 3],
    resized_width: u64,
    resized_height: u64,
    left: u64,
    top: u64,
    pitches: [u32; 3],
    width: u32,
    height: u32,
    layout: u32,
    shift_x: u32,
    shift_y: u32,
    turn: u32,
    slot: u32,
}

/// The parameters common to all images of a batch. Same layout as `WeirTensor`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct TensorDescriptor {
    tensor: u64,
    crop: u32,
    element: u32,
    factor: [f32; 3],
    offset: [f32; 3],
}

impl ImageDescriptor {
    /// For an image stored as `width` by `height`, neither of them 0, whose tensor is written to place `slot` of the batch.
    pub fn new(
        layout: PixelLayout,
        (width, height): (u32, u32),
        orientation: Orientation,
        spec: &PreprocessSpec,
        slot: u32,
    ) -> Self {
        let none = (0, 0);
        let (code, planes, shift_x, shift_y) = match layout {
            PixelLayout::Rgb { plane } => (0, [plane, none, none], 0, 0),
            PixelLayout::YCbCr { planes, shift_x, shift_y } => (1, planes, shift_x, shift_y),
            PixelLayout::Grey { plane } => (2, [plane, none, none], 0, 0),
        };
        let ResizeCrop { resized_width, resized_height, left, top } =
            ResizeCrop::new(width, height, orientation, spec);
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        Self {
            planes: planes.map(|(address, _)| address),
            resized_width,
            resized_height,
            left,
            top,
            pitches: planes.map(|(_, pitch)| pitch),
            width,
            height,
            layout: code,
            shift_x,
            shift_y,
            turn: bit(orientation.swaps_sides(), SWAP_SIDES)
                | bit(orientation.flips_columns(), FLIP_COLUMNS)
                | bit(orientation.flips_rows(), FLIP_ROWS),
            slot,
        }
    }
}

impl TensorDescriptor {
    /// A tensor at the device address `tensor`: N, 3, `crop`, `crop`.
    pub fn new(tensor: u64, element: Element, spec: &PreprocessSpec) -> Self {
        let factor = spec.std.map(|std| 1.0 / std);
        let offset = [0, 1, 2].map(|channel| -spec.mean[channel] / spec.std[channel]);
        let element = match element {
            Element::F32 => 0,
            Element::F16 => 1,
        };
        Self { tensor, crop: spec.crop, element, factor, offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_lies_within_its_block_or_is_refused() {
        let rgb = |offset, pitch| PixelLayout::Rgb { plane: (offset, pitch) };
        assert!(rgb(0, 24).fits((7, 3), 72) && rgb(8, 24).fits((7, 3), 80));
        assert!(!rgb(0, 24).fits((7, 3), 71), "a byte less");
        assert!(!rgb(0, 20).fits((7, 3), 1000) && !rgb(0, 26).fits((7, 3), 1000), "pitches");
        assert!(!rgb(2, 24).fits((7, 3), 1000) && !rgb(u64::MAX - 3, 24).fits((7, 3), 1000), "offsets");
        assert!(!rgb(0, 24).fits((0, 3), 1000) && !rgb(0, 24).fits((7, 0), 1000), "sizes");
        let planar = |red| PixelLayout::YCbCr {
            planes: [(0, 8), (24, 4), (32, 4)]
                .map(|(at, pitch)| if at == 32 { (red, pitch) } else { (at, pitch) }),
            shift_x: 1,
            shift_y: 1,
        };
        assert!(planar(32).fits((5, 3), 40) && !planar(36).fits((5, 3), 40));
        assert_eq!(rgb(8, 24).at(256), rgb(264, 24));
    }
}
