//! Writers for files that the available encoders cannot write: unusual colour types, metadata, false headers.

/// A PNG from its chunks; the first is the body of IHDR.
pub(crate) fn png(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, body) in chunks {
        out.extend((body.len() as u32).to_be_bytes());
        let start = out.len();
        out.extend_from_slice(*name);
        out.extend_from_slice(body);
        let sum = crc32(&out[start..]);
        out.extend(sum.to_be_bytes());
    }
    out
}

/// The body of IHDR. Colour types: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
pub(crate) fn ihdr(width: u32, height: u32, depth: u8, color: u8) -> (&'static [u8; 4], Vec<u8>) {
    let mut body = [width.to_be_bytes(), height.to_be_bytes()].concat();
    body.extend([depth, color, 0, 0, 0]);
    (b"IHDR", body)
}

/// The body of IDAT for rows without a filter, in stored (not compressed) blocks.
pub(crate) fn idat(rows: &[&[u8]]) -> (&'static [u8; 4], Vec<u8>) {
    let raw: Vec<u8> = rows.iter().flat_map(|row| std::iter::once(&0).chain(row.iter())).copied().collect();
    let length = raw.len() as u16;
    let mut body = vec![0x78, 0x01, 0x01];
    body.extend(length.to_le_bytes());
    body.extend((!length).to_le_bytes());
    body.extend_from_slice(&raw);
    let (mut a, mut b) = (1u32, 0u32);
    for byte in raw {
        a = (a + u32::from(byte)) % 65521;
        b = (b + a) % 65521;
    }
    body.extend((b << 16 | a).to_be_bytes());
    (b"IDAT", body)
}

pub(crate) fn iend() -> (&'static [u8; 4], Vec<u8>) {
    (b"IEND", Vec::new())
}

pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 },
        )
    })
}

/// A TIFF header and an IFD with the given entries (tag, type, count, value), then `strip`. The entry 273
/// (StripOffsets) is filled in.
pub(crate) fn tiff(entries: &[(u16, u16, u32, u32)], strip: &[u8]) -> Vec<u8> {
    let mut out = b"II*\0\x08\0\0\0".to_vec();
    out.extend((entries.len() as u16).to_le_bytes());
    let data = 8 + 2 + 12 * entries.len() as u32 + 4;
    for &(tag, kind, count, value) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(count.to_le_bytes());
        out.extend(if tag == 273 { data } else { value }.to_le_bytes());
    }
    out.extend([0; 4]);
    out.extend_from_slice(strip);
    out
}

/// Entries of an uncompressed TIFF of one strip. Photometric: 1 grey, 2 RGB, 5 CMYK. `bits` of up to two samples fit in the
/// entry; more need the same bits in each, which a count of 1 expresses as well.
pub(crate) fn tiff_entries(
    width: u32,
    height: u32,
    bits: u32,
    photometric: u32,
    strip: u32,
) -> Vec<(u16, u16, u32, u32)> {
    vec![
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, bits),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 0),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, strip),
    ]
}

/// An EXIF block with an orientation, in either byte order.
pub(crate) fn exif(orientation: u8, big_endian: bool) -> Vec<u8> {
    if big_endian {
        let mut out = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        out.extend([orientation, 0, 0, 0, 0, 0, 0]);
        out
    } else {
        let mut out = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        out.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        out
    }
}

/// Inserts a segment after the SOI of a JPEG.
pub(crate) fn with_segment(jpeg: &[u8], code: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xFF, 0xD8, 0xFF, code];
    out.extend((body.len() as u16 + 2).to_be_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(&jpeg[2..]);
    out
}

pub(crate) fn with_exif(jpeg: &[u8], block: &[u8]) -> Vec<u8> {
    with_segment(jpeg, 0xE1, &[b"Exif\0\0", block].concat())
}

/// A RIFF file of WebP chunks.
pub(crate) fn webp(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let body = riff_chunks(chunks);
    let mut out = b"RIFF".to_vec();
    out.extend((body.len() as u32 + 4).to_le_bytes());
    out.extend(b"WEBP");
    out.extend(body);
    out
}

pub(crate) fn riff_chunks(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, body) in chunks {
        out.extend_from_slice(*name);
        out.extend((body.len() as u32).to_le_bytes());
        out.extend_from_slice(body);
        out.extend(std::iter::repeat_n(0, body.len() % 2));
    }
    out
}

/// The body of VP8X. Flags: 0x02 animation, 0x08 EXIF, 0x10 alpha.
pub(crate) fn vp8x(flags: u8, width: u32, height: u32) -> (&'static [u8; 4], Vec<u8>) {
    let mut body = vec![flags, 0, 0, 0];
    body.extend(&(width - 1).to_le_bytes()[..3]);
    body.extend(&(height - 1).to_le_bytes()[..3]);
    (b"VP8X", body)
}
