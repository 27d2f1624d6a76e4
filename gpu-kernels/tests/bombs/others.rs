//! GIFs and BMPs.

use gpu_kernels::ImageFormat;
use image::{DynamicImage, RgbImage};

use super::{Bomb, Fate, MAX_BODY, SIDE};

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

/// A canvas of four megapixels with frames of one pixel, as many as there is room for.
fn gif_frames() -> Vec<u8> {
    let mut out = gif_head(SIDE as u16, SIDE as u16);
    while out.len() + 16 < MAX_BODY {
        out.extend(gif_frame());
    }
    out.push(0x3B);
    out
}

/// Blocks of an extension, as many as there is room for, in front of a frame.
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
