//! TIFFs.

use gpu_kernels::ImageFormat;

use super::{Bomb, Fate, packed_flood, packed_zeros};

/// Entries of a directory in front of the lists that they point to, and those in front of the strips' data.
fn striped(width: u32, height: u32, compression: u32, strip: &[u8], parts: u32, shared: u32) -> Vec<u8> {
    let directory = 8u32;
    let lists = directory + 2 + 12 * 10 + 4;
    let data = lists + 8 * parts;
    let rows = height.div_ceil(parts);
    // One value stands in the entry itself.
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
    // So many strips share the same data.
    for part in 0..parts {
        out.extend((data + part / shared * strip.len() as u32).to_le_bytes());
    }
    (0..parts).for_each(|_| out.extend((strip.len() as u32).to_le_bytes()));
    (0..parts.div_ceil(shared)).for_each(|_| out.extend_from_slice(strip));
    out
}

pub(super) fn all() -> Vec<Bomb> {
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
