//! The memory for the Huffman codes of a lossless WebP, computed before its decoder builds tables for them.
//!
//! A lossless bitstream may define 65,536 groups of five codes, for each of which the decoder builds tables: a file of one
//! megabyte then takes hundreds. So the bitstream is parsed here up to its pixels, whose codes are read but not used.
//!
//! Parsing follows `image-webp`, which differs from the specification for invalid bitstreams: what is read here must be what
//! the decoder reads.
//!
//! The work is bounded by the image: its transforms and groups are three images of at most a sixteenth of its pixels, and a
//! palette of 256, read one after the other into one buffer. Codes are read until they exceed the memory limit.
//!
//! Source: the specification of the WebP lossless bitstream, sections 4 to 6.

mod codes;

use codes::{Code, Reader};

/// Memory per code besides its tables, in a list that doubles.
const CODE_BYTES: u64 = 168;
/// Bits that index a code's first table, and bytes per entry.
const TABLE_BITS: usize = 10;
const ENTRY_BYTES: u64 = 4;
/// Bytes for a symbol with a longer code: two nodes of a tree.
const LONG_BYTES: u64 = 32;

/// The memory of all codes of a bitstream of `size` pixels; the count stops once it exceeds `most`. `has_header` for a VP8L
/// chunk, not for an ALPH chunk. `None` if the bitstream is invalid up to its pixels.
pub(super) fn code_memory(bytes: &[u8], size: (u32, u32), has_header: bool, most: u64) -> Option<u64> {
    let mut reader = Reader::new(bytes);
    if has_header {
        reader.bits(32)?;
        reader.bits(8)?;
    }
    let (mut width, height) = size;
    let mut seen = [false; 4];
    let mut buffer = Vec::new();
    while reader.bits(1)? == 1 {
        let kind = reader.bits(2)? as usize;
        (!std::mem::replace(&mut seen[kind], true)).then_some(())?;
        match kind {
            0 | 1 => {
                let side = reader.bits(3)? + 2;
                pixels(&mut reader, parts(width, side), parts(height, side), &mut buffer)?;
            }
            2 => {}
            _ => {
                let colours = reader.bits(8)? + 1;
                pixels(&mut reader, colours, 1, &mut buffer)?;
                let packed = match colours {
                    ..=2 => 3,
                    3..=4 => 2,
                    5..=16 => 1,
                    _ => 0,
                };
                width = parts(width, packed);
            }
        }
    }
    let cache = cache_bits(&mut reader)?;
    let mut groups = 1;
    if reader.bits(1)? == 1 {
        let side = reader.bits(3)? + 2;
        pixels(&mut reader, parts(width, side), parts(height, side), &mut buffer)?;
        groups = buffer.iter().map(|pixel| (pixel >> 8 & 0xFFFF) + 1).max()?;
    }
    let mut memory = 0;
    for _ in 0..groups {
        for alphabet in alphabets(cache) {
            memory += memory_of(codes::read_lengths(&mut reader, alphabet)?);
        }
        if memory > most {
            break;
        }
    }
    Some(memory)
}

/// Memory of a code with these numbers of symbols per length.
fn memory_of(counts: [u16; 16]) -> u64 {
    let symbols: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    if symbols < 2 {
        return CODE_BYTES;
    }
    let longest = counts.iter().rposition(|&count| count > 0).unwrap_or(1);
    let long: u64 = counts[TABLE_BITS + 1..].iter().map(|&count| u64::from(count)).sum();
    CODE_BYTES + (ENTRY_BYTES << longest.min(TABLE_BITS)) + LONG_BYTES * long
}

/// Blocks of `1 << bits` pixels along a side.
fn parts(side: u32, bits: u32) -> u32 {
    side.div_ceil(1 << bits)
}

/// Sizes of the five alphabets of a group: green with lengths and cache, red, blue, alpha, distance.
fn alphabets(cache_bits: u32) -> [usize; 5] {
    let cache = if cache_bits == 0 { 0 } else { 1 << cache_bits };
    [280 + cache, 256, 256, 256, 40]
}

/// Bits of the colour cache; 0 for none.
fn cache_bits(reader: &mut Reader<'_>) -> Option<u32> {
    if reader.bits(1)? == 0 {
        return Some(0);
    }
    let bits = reader.bits(4)?;
    (1..=11).contains(&bits).then_some(bits)
}

/// Decodes an image with one group of codes (a transform's data, or the groups of the main image) into `pixels`, replacing its
/// content, as ARGB.
fn pixels(reader: &mut Reader<'_>, width: u32, height: u32, pixels: &mut Vec<u32>) -> Option<()> {
    let cache_bits = cache_bits(reader)?;
    let mut codes = [const { None }; 5];
    for (code, alphabet) in codes.iter_mut().zip(alphabets(cache_bits)) {
        *code = Some(Code::read(reader, alphabet)?);
    }
    let [Some(green), Some(red), Some(blue), Some(alpha), Some(distance)] = codes else { return None };
    let count = width as usize * height as usize;
    pixels.clear();
    pixels.reserve_exact(count);
    let mut cache = vec![0u32; if cache_bits == 0 { 0 } else { 1 << cache_bits }];
    let place = |pixel: u32| (pixel.wrapping_mul(0x1E35_A7BD) >> (32 - cache_bits)) as usize;
    while pixels.len() < count {
        let first = pixels.len();
        match green.symbol(reader)? {
            level @ ..256 => {
                let (red, blue, alpha) = (red.symbol(reader)?, blue.symbol(reader)?, alpha.symbol(reader)?);
                let pixel = alpha << 24 | red << 16 | level << 8 | blue;
                pixels.push(pixel);
                if cache_bits > 0 {
                    cache[place(pixel)] = pixel;
                }
            }
            prefix @ 256..280 => {
                let length = number(reader, prefix - 256)? as usize;
                let prefix = distance.symbol(reader)?;
                let back = offset(number(reader, prefix)?, width);
                let start = first.checked_sub(back)?;
                (length <= count - first).then_some(())?;
                for at in start..start + length {
                    pixels.push(pixels[at]);
                }
                // A run of one pixel is already in the cache.
                if cache_bits > 0 && back > 1 {
                    for &pixel in &pixels[first..] {
                        cache[place(pixel)] = pixel;
                    }
                }
            }
            index => pixels.push(*cache.get(index as usize - 280)?),
        }
    }
    Some(())
}

/// Decodes a length or a distance from its prefix.
fn number(reader: &mut Reader<'_>, prefix: u32) -> Option<u32> {
    if prefix < 4 {
        return Some(prefix + 1);
    }
    let extra = (prefix - 2) >> 1;
    Some(((2 + (prefix & 1)) << extra) + reader.bits(extra)? + 1)
}

/// The distance in pixels of a distance code: the first 120 stand for neighbours.
fn offset(code: u32, width: u32) -> usize {
    if code > 120 {
        return code as usize - 120;
    }
    let (x, y) = NEIGHBOURS[code as usize - 1];
    (i64::from(x) + i64::from(y) * i64::from(width)).max(1) as usize
}

#[rustfmt::skip]
const NEIGHBOURS: [(i8, i8); 120] = [
    (0, 1),  (1, 0),  (1, 1),  (-1, 1), (0, 2),  (2, 0),  (1, 2),  (-1, 2),
    (2, 1),  (-2, 1), (2, 2),  (-2, 2), (0, 3),  (3, 0),  (1, 3),  (-1, 3),
    (3, 1),  (-3, 1), (2, 3),  (-2, 3), (3, 2),  (-3, 2), (0, 4),  (4, 0),
    (1, 4),  (-1, 4), (4, 1),  (-4, 1), (3, 3),  (-3, 3), (2, 4),  (-2, 4),
    (4, 2),  (-4, 2), (0, 5),  (3, 4),  (-3, 4), (4, 3),  (-4, 3), (5, 0),
    (1, 5),  (-1, 5), (5, 1),  (-5, 1), (2, 5),  (-2, 5), (5, 2),  (-5, 2),
    (4, 4),  (-4, 4), (3, 5),  (-3, 5), (5, 3),  (-5, 3), (0, 6),  (6, 0),
    (1, 6),  (-1, 6), (6, 1),  (-6, 1), (2, 6),  (-2, 6), (6, 2),  (-6, 2),
    (4, 5),  (-4, 5), (5, 4),  (-5, 4), (3, 6),  (-3, 6), (6, 3),  (-6, 3),
    (0, 7),  (7, 0),  (1, 7),  (-1, 7), (5, 5),  (-5, 5), (7, 1),  (-7, 1),
    (4, 6),  (-4, 6), (6, 4),  (-6, 4), (2, 7),  (-2, 7), (7, 2),  (-7, 2),
    (3, 7),  (-3, 7), (7, 3),  (-7, 3), (5, 6),  (-5, 6), (6, 5),  (-6, 5),
    (8, 0),  (4, 7),  (-4, 7), (7, 4),  (-7, 4), (8, 1),  (8, 2),  (6, 6),
    (-6, 6), (8, 3),  (5, 7),  (-5, 7), (7, 5),  (-7, 5), (8, 4),  (6, 7),
    (-6, 7), (7, 6),  (-7, 6), (8, 5),  (7, 7),  (-7, 7), (8, 6),  (8, 7)
];
