//! GIFs, BMPs and TIFFs.

use gpu_kernels::ImageFormat;
use image::{DynamicImage, RgbImage};

use super::{Bomb, Fate, MAX_BODY, SIDE, packed_flood, packed_zeros};

/// Up to the first frame, with a palette of two colours.
fn gif_head(width: u16, height: u16) -> Vec<u8> {
    let mut out = b"GIF89a".to_vec();
    out.extend([width.to_le_bytes(), height.to_le_bytes()].concat());
    out.extend([0x80, 0, 0, 1, 2, 3, 4, 5, 6]);
    out
}

/// A frame of one pixel.
fn gif_frame() -> [u8; 15] {
    [0x2C, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0]
}

/// A canvas of four megapixels with as many one-pixel frames as fit.
fn gif_frames() -> Vec<u8> {
    let mut out = gif_head(SIDE as u16, SIDE as u16);
    while out.len() + 16 < MAX_BODY {
        out.extend(gif_frame());
    }
    out.push(0x3B);
    out
}

/// As many extension blocks as fit, before a frame.
fn gif_extension(label: u8, head: &[u8]) -> Vec<u8> {
    let mut out = gif_head(16, 16);
    out.extend([0x21, label]);
    out.extend_from_slice(head);
    while out.len() + 300 < MAX_BODY {
        out.push(255);
        out.extend([7; 255]);
    }
    out.push(0);
    out.extend(gif_frame());
    out.push(0x3B);
    out
}

fn gif() -> Vec<u8> {
    let picture = RgbImage::from_fn(SIDE, SIDE, |x, _| image::Rgb([(x % 200) as u8; 3]));
    let mut file = std::io::Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(picture).write_to(&mut file, image::ImageFormat::Gif).unwrap();
    file.into_inner()
}

/// A run-length coded bitmap of 8 bits.
fn rle(side: u32, data: &[u8]) -> Vec<u8> {
    let offset = 14 + 40 + 1024u32;
    let mut out = b"BM".to_vec();
    for number in [offset + data.len() as u32, 0, offset, 40, side, side] {
        out.extend(number.to_le_bytes());
    }
    out.extend([1, 0, 8, 0]);
    for number in [1, data.len() as u32, 0, 0, 0, 0] {
        out.extend(u32::to_le_bytes(number));
    }
    out.extend((0..256u32).flat_map(|level| [level as u8, level as u8, level as u8, 0]));
    out.extend_from_slice(data);
    out
}

pub(super) fn all() -> Vec<Bomb> {
    let repeated = |piece: &[u8], end: &[u8]| {
        let count = (MAX_BODY - 2000) / piece.len();
        [piece.repeat(count), end.to_vec()].concat()
    };
    let gifs = super::of(
        ImageFormat::Gif,
        vec![
            ("GIF", Fate::Decoded, gif()),
            ("GIF, a million frames", Fate::Decoded, gif_frames()),
            ("GIF, a comment of 20 MiB", Fate::Decoded, gif_extension(0xFE, &[])),
            ("GIF, a profile of 20 MiB", Fate::Decoded, gif_extension(0xFF, b"\x0BICCRGBG1012")),
            ("GIF, XMP of 20 MiB", Fate::Decoded, gif_extension(0xFF, b"\x0BXMP DataXMP")),
        ],
    );
    let bmps = super::of(
        ImageFormat::Bmp,
        vec![
            ("BMP, run lengths that end at once", Fate::Decoded, rle(SIDE, &[0, 1])),
            ("BMP, 20 MiB of steps of nothing", Fate::Decoded, rle(SIDE, &repeated(&[0, 2, 0, 0], &[0, 1]))),
            ("BMP, 20 MiB of runs in one row", Fate::Decoded, rle(SIDE, &repeated(&[255, 7], &[0, 1]))),
        ],
    );
    [gifs, bmps].concat()
}

/// A TIFF whose directory comes before the lists that it points to, and those before the strips' data.
fn striped(width: u32, height: u32, compression: u32, strip: &[u8], parts: u32, shared: u32) -> Vec<u8> {
    let directory = 8u32;
    let lists = directory + 2 + 12 * 10 + 4;
    let data = lists + 8 * parts;
    let rows = height.div_ceil(parts);
    // A single value is stored in the entry itself.
    let (offsets, lengths) = if parts == 1 { (data, strip.len() as u32) } else { (lists, lists + 4 * parts) };
    let mut out = b"II*\0\x08\0\0\0\x0A\0".to_vec();
    for (tag, kind, count, value) in [
        (256u16, 4u16, 1u32, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, parts, offsets),
        (277, 3, 1, 1),
        (278, 4, 1, rows),
        (279, 4, parts, lengths),
        (284, 3, 1, 1),
    ] {
        out.extend(tag.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(count.to_le_bytes());
        out.extend(value.to_le_bytes());
    }
    out.extend([0; 4]);
    // This many strips share the same data.
    for part in 0..parts {
        out.extend((data + part / shared * strip.len() as u32).to_le_bytes());
    }
    (0..parts).for_each(|_| out.extend((strip.len() as u32).to_le_bytes()));
    (0..parts.div_ceil(shared)).for_each(|_| out.extend_from_slice(strip));
    out
}

pub(super) fn tiffs() -> Vec<Bomb> {
    let row = packed_zeros(700);
    super::of(
        ImageFormat::Tiff,
        vec![
            (
                "TIFF, JPEG strips larger than the image",
                Fate::Refused("unsupported_image"),
                include_bytes!("../field/strip_bomb.tif").to_vec(),
            ),
            (
                "TIFF, tiles in planes",
                Fate::Refused("unsupported_image"),
                include_bytes!("../field/tiled_planar.tif").to_vec(),
            ),
            ("TIFF, 65,536 strips", Fate::Decoded, striped(700, 65_536, 8, &row, 65_536, 1)),
            (
                "TIFF, 65,536 strips of the same data",
                Fate::Refused("corrupt_image"),
                striped(700, 65_536, 8, &[&row[..], &[0; 4096]].concat(), 65_536, 65_536),
            ),
            ("TIFF, a strip of 256 MiB", Fate::Decoded, striped(64, 64, 8, &packed_flood(), 1, 1)),
            (
                "TIFF, one strip of 4 megapixels",
                Fate::Decoded,
                striped(2048, 2048, 8, &packed_zeros(1 << 22), 1, 1),
            ),
        ],
    )
}
