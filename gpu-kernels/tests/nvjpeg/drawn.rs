//! JPEGs of every kind, drawn here or assembled by hand.

use turbojpeg::{Colorspace, Compressor, Image, PixelFormat, Subsamp};

/// How a JPEG is encoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) subsampling: Subsamp,
    pub(crate) colours: Colorspace,
    pub(crate) optimised: bool,
    pub(crate) progressive: bool,
    pub(crate) arithmetic: bool,
    pub(crate) lossless: bool,
}

pub(crate) const PLAIN: Kind = Kind {
    subsampling: Subsamp::Sub2x2,
    colours: Colorspace::YCbCr,
    optimised: false,
    progressive: false,
    arithmetic: false,
    lossless: false,
};
pub(crate) const GREY: Kind = Kind { subsampling: Subsamp::Gray, colours: Colorspace::Gray, ..PLAIN };
pub(crate) const PROGRESSIVE: Kind = Kind { progressive: true, ..PLAIN };

/// The subsamplings that nvJPEG supports, with their shifts across and down.
pub(crate) const SUBSAMPLINGS: [(Subsamp, (u32, u32)); 4] = [
    (Subsamp::None, (0, 0)),
    (Subsamp::Sub2x1, (1, 0)),
    (Subsamp::Sub2x2, (1, 1)),
    (Subsamp::Sub1x2, (0, 1)),
];

impl Kind {
    /// A smooth picture with some grain.
    pub(crate) fn draw(self, width: usize, height: usize) -> Vec<u8> {
        let format = match self.colours {
            Colorspace::Gray => PixelFormat::GRAY,
            Colorspace::CMYK | Colorspace::YCCK => PixelFormat::CMYK,
            _ => PixelFormat::RGB,
        };
        let mut pixels = Vec::new();
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let grain = ((x * 7919) ^ (y * 104_729)) % 23;
            let levels =
                [x * 200 / width, y * 200 / height, 200 - x * 100 / width, 150].map(|level| level + grain);
            pixels.extend(levels.iter().take(format.size()).map(|&level| level as u8));
        }
        let mut compressor = Compressor::new().unwrap();
        compressor.set_quality(90).unwrap();
        compressor.set_subsamp(self.subsampling).unwrap();
        compressor.set_colorspace(self.colours).unwrap();
        compressor.set_optimize(self.optimised).unwrap();
        compressor.set_progressive(self.progressive).unwrap();
        compressor.set_arithmetic(self.arithmetic).unwrap();
        compressor.set_lossless(self.lossless).unwrap();
        let pitch = width * format.size();
        let image = Image { pixels: &pixels[..], width, pitch, height, format };
        compressor.compress_to_vec(image).unwrap()
    }
}

/// Position of the `nth` marker `code`, counted from 0.
pub(crate) fn position(bytes: &[u8], code: u8, nth: usize) -> usize {
    bytes.windows(2).enumerate().filter(|(_, pair)| *pair == [0xFF, code]).nth(nth).unwrap().0
}

/// `bytes` with `insert` before position `at`.
pub(crate) fn spliced(bytes: &[u8], at: usize, insert: &[u8]) -> Vec<u8> {
    [&bytes[..at], insert, &bytes[at..]].concat()
}

/// With a segment after the SOI, in place of the JFIF marker.
pub(crate) fn without_jfif(bytes: &[u8], code: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16 + 2).to_be_bytes();
    [&[0xFF, 0xD8, 0xFF, code], &length[..], body, &bytes[20..]].concat()
}

/// A JPEG of 64 x 8 in 4:4:4 or grey, with restart intervals of one MCU each, eight in total.
pub(crate) fn with_restarts(components: u8, intervals: u8) -> Vec<u8> {
    let ids: Vec<u8> = (1..=components).collect();
    [headers(components), scan(&ids, intervals), vec![0xFF, 0xD9]].concat()
}

/// The same with this many scans of one component each, of three.
pub(crate) fn in_scans(scans: u8) -> Vec<u8> {
    let scans: Vec<u8> = (1..=scans).flat_map(|id| scan(&[id], 8)).collect();
    [headers(3), scans, vec![0xFF, 0xD9]].concat()
}

fn headers(components: u8) -> Vec<u8> {
    let mut out = vec![0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0];
    out.extend([8; 64]);
    out.extend([0xFF, 0xC0, 0, 8 + 3 * components, 8, 0, 8, 0, 64, components]);
    out.extend((1..=components).flat_map(|id| [id, 0x11, 0]));
    // DC: the code 0 is category 7. AC: the code 0 is the end of the block.
    for (class, value) in [(0x00, 7), (0x10, 0)] {
        out.extend([0xFF, 0xC4, 0, 20, class, 1]);
        out.extend([0; 15]);
        out.push(value);
    }
    out.extend([0xFF, 0xDD, 0, 4, 0, 1]);
    out
}

fn scan(ids: &[u8], intervals: u8) -> Vec<u8> {
    let mut out = vec![0xFF, 0xDA, 0, 6 + 2 * ids.len() as u8, ids.len() as u8];
    out.extend(ids.iter().flat_map(|&id| [id, 0]));
    out.extend([0, 63, 0]);
    for interval in 0..intervals {
        if interval > 0 {
            out.extend([0xFF, 0xD0 + (interval - 1) % 8]);
        }
        // A block is 0 1000000 0: a DC difference of 64 and the end. Ones fill the last byte.
        out.extend(if ids.len() == 1 { &[0x40, 0x7F][..] } else { &[0x40, 0x20, 0x10, 0x1F] });
    }
    out
}
