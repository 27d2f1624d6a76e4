//! WebPs.

use gpu_kernels::ImageFormat;
use image::{DynamicImage, RgbaImage};

use super::{Bomb, Fate, MAX_BODY, SIDE};
use crate::write::{riff_chunks, vp8x, webp};

/// A bit writer (least significant bit first).
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    count: usize,
}

impl Bits {
    fn put(&mut self, value: u32, count: usize) {
        for bit in 0..count {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if value >> bit & 1 == 1 {
                *self.bytes.last_mut().unwrap() |= 1 << (self.count % 8);
            }
            self.count += 1;
        }
    }

    /// A code of one symbol.
    fn lone(&mut self, symbol: u32) {
        self.put(0b101, 3);
        self.put(symbol, 8);
    }

    /// A code of lengths 1 to 10, for which the decoder builds a table of 1024 entries.
    fn deep(&mut self) {
        // The code of lengths: those of 0 to 15 have four bits each.
        self.put(0, 1);
        self.put(15, 4);
        for place in [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
            self.put(if place < 16 { 4 } else { 0 }, 3);
        }
        // Exactly eleven symbols.
        self.put(1, 1);
        self.put(1, 3);
        self.put(9, 4);
        for length in [1u32, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10] {
            self.put(length.reverse_bits() >> 28, 4);
        }
    }
}

pub(super) fn groups(count: u32) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.put(0x2F, 8);
    bits.put(3, 14);
    bits.put(3, 14);
    bits.put(0, 4);
    put_groups(&mut bits, count);
    webp(&[(b"VP8L", bits.bytes)])
}

/// A bitstream of at most four pixels per side after its size.
fn put_groups(bits: &mut Bits, count: u32) {
    // No transform, no cache, and an image of one pixel that refers to the last group.
    bits.put(0, 1);
    bits.put(0, 1);
    bits.put(1, 1);
    bits.put(0, 3);
    bits.put(0, 1);
    let last = count - 1;
    for symbol in [last & 0xFF, last >> 8, 0, 0, 0] {
        bits.lone(symbol);
    }
    for _ in 0..count {
        for _ in 0..5 {
            bits.deep();
        }
    }
    (0..16).for_each(|_| bits.put(0, 32));
}

/// Compressed alpha with this many groups of codes.
fn alpha(count: u32) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.put(1, 8);
    put_groups(&mut bits, count);
    bits.bytes
}

/// The header of a VP8 bitstream.
fn lossy(width: u16, height: u16) -> Vec<u8> {
    let mut bits = vec![0x10, 0, 0, 0x9D, 0x01, 0x2A];
    bits.extend(width.to_le_bytes());
    bits.extend(height.to_le_bytes());
    bits.resize(64, 0);
    bits
}

/// Alpha after a VP8X chunk without a body: the decoder finds it in the following chunk, whose name is flags and whose size is
/// a width.
fn short_header() -> Vec<u8> {
    webp(&[
        (b"VP8X", Vec::new()),
        (b"\x10\0\0\0", vec![0; 3]),
        (b"ALPH", alpha(65_536)),
        (b"VP8 ", lossy(4, 1)),
    ])
}

/// A frame of 4 x 4 pixels in a file of 16 x 16.
fn framed(flags: u8, chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![0; 6];
    body.extend([3, 0, 0, 3, 0, 0, 0, 0, 0, 0]);
    body.extend(riff_chunks(chunks));
    let mut all = vec![vp8x(flags, 16, 16), (b"ANIM", vec![0; 6]), (b"ANMF", body)];
    if flags & 2 == 0 {
        all.push((b"VP8 ", lossy(16, 16)));
    }
    webp(&all)
}

/// The bitstream of a picture, without its container.
fn bitstream(width: u32, height: u32) -> Vec<u8> {
    let picture =
        RgbaImage::from_fn(width, height, |x, y| image::Rgba([x as u8, y as u8, (x ^ y) as u8, x as u8 | 1]));
    let mut file = std::io::Cursor::new(Vec::new());
    DynamicImage::ImageRgba8(picture).write_to(&mut file, image::ImageFormat::WebP).unwrap();
    // RIFF, its size, WEBP, VP8L and its size.
    let file = file.into_inner();
    let start = file.windows(4).position(|name| name == b"VP8L").unwrap();
    let size = u32::from_le_bytes(*file[start + 4..].first_chunk().unwrap()) as usize;
    file[start + 8..start + 8 + size].to_vec()
}

/// A frame at the upper left, of its own size.
fn frame(width: u32, height: u32, bits: &[u8]) -> (&'static [u8; 4], Vec<u8>) {
    let mut body = vec![0; 6];
    body.extend(&(width - 1).to_le_bytes()[..3]);
    body.extend(&(height - 1).to_le_bytes()[..3]);
    body.extend([0; 4]);
    body.extend(riff_chunks(&[(b"VP8L", bits.to_vec())]));
    (b"ANMF", body)
}

fn animation(side: u32, frames: usize) -> Vec<u8> {
    let bits = bitstream(side, side);
    let mut chunks = vec![vp8x(0x12, side, side), (b"ANIM", vec![0; 6])];
    chunks.extend((0..frames).map(|_| frame(side, side, &bits)));
    webp(&chunks)
}

pub(super) fn all() -> Vec<Bomb> {
    let unknown = {
        let mut file = webp(&[vp8x(0x10, 16, 16)]);
        while file.len() + 8 < MAX_BODY - 1000 {
            let number = file.len() as u32;
            file.extend(number.to_le_bytes());
            file.extend([0; 4]);
        }
        file.extend(riff_chunks(&[(b"VP8L", bitstream(16, 16))]));
        let size = file.len() as u32 - 8;
        file[4..8].copy_from_slice(&size.to_le_bytes());
        file
    };
    super::of(
        ImageFormat::WebP,
        vec![
            ("WebP, lossless", Fate::Decoded, webp(&[(b"VP8L", bitstream(SIDE, SIDE))])),
            ("WebP, as many Huffman codes as are accepted", Fate::Decoded, groups(1500)),
            ("WebP, 65,536 groups of Huffman codes", Fate::Fails("unsupported_image"), groups(65_536)),
            ("WebP, alpha behind a header that is too short", Fate::Refused("corrupt_image"), short_header()),
            (
                "WebP, alpha in a frame of what is no animation",
                Fate::Refused("corrupt_image"),
                framed(0x10, &[(b"ALPH", alpha(65_536)), (b"VP8 ", lossy(4, 4))]),
            ),
            (
                "WebP, alpha in a frame",
                Fate::Fails("unsupported_image"),
                framed(0x12, &[(b"ALPH", alpha(65_536)), (b"VP8 ", lossy(4, 4))]),
            ),
            (
                "WebP, alpha in a frame, and no VP8 behind it",
                Fate::Refused("corrupt_image"),
                framed(0x12, &[(b"ALPH", alpha(65_536)), (b"VP8L", lossy(4, 4))]),
            ),
            (
                "WebP, bitstreams larger than their canvas",
                Fate::Refused("corrupt_image"),
                webp(&[vp8x(0, 1, 1), (b"VP8L", vec![0x2F, 0xFF, 0xC7, 0xFF, 0x01])]),
            ),
            ("WebP, animated", Fate::Decoded, animation(SIDE, 1)),
            ("WebP, 5,000 frames", Fate::Decoded, animation(64, 5000)),
            ("WebP, a million unknown chunks", Fate::Decoded, unknown),
        ],
    )
}
