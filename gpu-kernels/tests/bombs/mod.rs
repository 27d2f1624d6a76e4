//! Small files that ask for much memory or time, written by code: the worst that is known of each format.

mod jpeg;
mod others;
mod png;
mod tiff;
mod webp;

use std::io::Write;
use std::sync::LazyLock;

use gpu_kernels::ImageFormat;

/// What is to become of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is decoded.
    Decoded,
    /// It is refused from its headers, with this code.
    Refused(&'static str),
    /// Its headers pass, its data doesn't, with this code.
    Fails(&'static str),
}

/// A file.
#[derive(Clone, Debug)]
pub(crate) struct Bomb {
    pub(crate) name: &'static str,
    pub(crate) format: ImageFormat,
    pub(crate) fate: Fate,
    pub(crate) bytes: Vec<u8>,
}

/// Most bytes of a file.
const MAX_BODY: usize = 20 << 20;
/// Side of the larger pictures: four megapixels.
const SIDE: u32 = 2048;
const FLOOD_BYTES: usize = 256 << 20;

/// All of them.
pub(crate) fn all() -> Vec<Bomb> {
    let all = [jpeg::all(), png::all(), webp::all(), tiff::all(), others::all()].concat();
    for bomb in &all {
        assert!(bomb.bytes.len() <= MAX_BODY, "{}", bomb.name);
    }
    all
}

/// Those of a format.
fn of(format: ImageFormat, files: Vec<(&'static str, Fate, Vec<u8>)>) -> Vec<Bomb> {
    files.into_iter().map(|(name, fate, bytes)| Bomb { name, format, fate, bytes }).collect()
}

/// A JPEG with so many scans of so many pixels a side.
pub(crate) fn scans(count: usize, side: u16) -> Vec<u8> {
    jpeg::progressive(side, 3, count)
}

/// A lossless WebP of 4 x 4 pixels with so many groups of Huffman codes, and more than they need behind them.
pub(crate) fn groups(count: u32) -> Vec<u8> {
    webp::groups(count)
}

/// More zeros than any of these pictures needs, compressed for a zlib stream.
fn packed_flood() -> Vec<u8> {
    static FLOOD: LazyLock<Vec<u8>> = LazyLock::new(|| packed_zeros(FLOOD_BYTES));
    FLOOD.clone()
}

/// Zeros, compressed for a zlib stream.
fn packed_zeros(length: usize) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0; 1 << 16];
    let mut left = length;
    while left > 0 {
        let now = left.min(zeros.len());
        encoder.write_all(&zeros[..now]).unwrap();
        left -= now;
    }
    encoder.finish().unwrap()
}
