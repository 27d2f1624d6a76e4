//! The frame header.

use super::JpegDefect;
use crate::decode::jpeg::markers::code;

/// The most that libjpeg takes for a side.
const MAX_SIDE: u16 = 65_500;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Sampling factors, 1 to 4.
    pub(super) across: u64,
    pub(super) down: u64,
    /// Number of its quantization table.
    pub(super) quantization: u8,
}

/// The frame header of a sequential or progressive JPEG with Huffman coding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    code: u8,
    pub(super) width: u64,
    pub(super) height: u64,
    components: [Component; 3],
    count: usize,
}

impl Frame {
    pub(super) fn read(code: u8, body: &[u8]) -> Result<Self, JpegDefect> {
        let &[8, h1, h0, w1, w0, count @ (1 | 3), ref components @ ..] = body else {
            return Err(JpegDefect::Structure);
        };
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        let (specifications, []) = components.as_chunks::<3>() else { return Err(JpegDefect::Structure) };
        let sides = 1..=MAX_SIDE;
        if specifications.len() != usize::from(count) || !sides.contains(&width) || !sides.contains(&height) {
            return Err(JpegDefect::Structure);
        }
        let mut components = [Component::default(); 3];
        for (index, &[id, sampling, quantization]) in specifications.iter().enumerate() {
            let (across, down) = (sampling >> 4, sampling & 15);
            let repeated = specifications.iter().take(index).any(|other| other[0] == id);
            if repeated || !(1..=4).contains(&across) || !(1..=4).contains(&down) {
                return Err(JpegDefect::Structure);
            }
            let (across, down) = (u64::from(across), u64::from(down));
            components[index] = Component { id, across, down, quantization };
        }
        let (width, height) = (u64::from(width), u64::from(height));
        Ok(Self { code, width, height, components, count: usize::from(count) })
    }

    pub(super) fn components(&self) -> &[Component] {
        &self.components[..self.count]
    }

    pub(super) fn is_baseline(&self) -> bool {
        self.code == code::SOF0
    }

    pub(super) fn is_progressive(&self) -> bool {
        self.code == code::SOF2
    }

    pub(super) fn sampling(&self) -> [u8; 3] {
        self.components.map(|component| (component.across << 4 | component.down) as u8)
    }
}
