//! What a JPEG decodes to: its planes, and where they lie in one block of device memory.

use crate::preprocess::PixelLayout;

/// A plane begins at a multiple of this many bytes behind the start of the block.
const PLANE_ALIGNMENT: u64 = 256;

/// The planes of a JPEG at full size, as [`eligible`](super::eligible()) finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JpegPlanes {
    /// Width of luma, pixels.
    pub width: u32,
    /// Height of luma, pixels.
    pub height: u32,
    /// 1 (grey) or 3 (YCbCr).
    pub components: u8,
    /// 1 where chroma is half as wide as luma, else 0.
    pub shift_x: u32,
    /// 1 where chroma is half as high as luma, else 0.
    pub shift_y: u32,
}

/// The planes of one image in device memory: address and pitch (bytes a row) of luma, blueness and redness; (0, 0) for
/// those that a grey image does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JpegDestination {
    /// Address and pitch a plane.
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

    /// Bytes of device memory that the planes take together.
    pub fn bytes(&self) -> u64 {
        self.offsets().1
    }

    /// Where the planes go in a block of [`bytes`](Self::bytes) at the device address `base`, a multiple of 256.
    pub fn destination(&self, base: u64) -> JpegDestination {
        let (offsets, _) = self.offsets();
        let pitches = self.pitches();
        let plane = |index: usize| match pitches[index] {
            0 => (0, 0),
            pitch => (base + offsets[index], pitch),
        };
        JpegDestination { planes: [plane(0), plane(1), plane(2)] }
    }

    /// How to read the planes that lie as [`destination`](Self::destination) says.
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

    /// Offset of each plane, and the end of the last.
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
