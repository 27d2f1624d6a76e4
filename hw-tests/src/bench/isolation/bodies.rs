//! Small bodies that cost a server much, unless it reads their headers with care.

/// A TIFF of 8 x 1 pixels whose one JPEG-compressed strip claims 16384 x 16384.
pub(super) fn strip_bomb() -> Vec<u8> {
    tiff(8, 1, &jpeg_header(16_384, 16_384))
}

/// A JPEG of 640 x 480 pixels with nothing but restart markers after its header, of this many bytes in all.
pub(super) fn restart_markers(bytes: usize) -> Vec<u8> {
    let mut jpeg = jpeg_header(640, 480);
    while jpeg.len() < bytes {
        let marker = 0xD0 + (jpeg.len() / 2 % 8) as u8;
        jpeg.extend([0xFF, marker]);
    }
    jpeg
}

/// A baseline JPEG up to its first entropy-coded byte, with a restart interval of one unit.
fn jpeg_header(width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = vec![0xFF, 0xD8];
    let mut segment = |code: u8, body: &[u8]| {
        jpeg.extend([0xFF, code]);
        jpeg.extend((body.len() as u16 + 2).to_be_bytes());
        jpeg.extend_from_slice(body);
    };
    segment(0xDB, &[&[0u8][..], &[16; 64]].concat());
    let ([h1, h0], [w1, w0]) = (height.to_be_bytes(), width.to_be_bytes());
    segment(0xC0, &[8, h1, h0, w1, w0, 1, 1, 0x11, 0]);
    // One code of one bit, for the value 0: enough for a table to be complete.
    let table = |class: u8| [&[class, 1][..], &[0; 15], &[0]].concat();
    segment(0xC4, &table(0x00));
    segment(0xC4, &table(0x10));
    segment(0xDD, &[0, 1]);
    segment(0xDA, &[1, 1, 0, 0, 63, 0]);
    jpeg
}

/// A grey TIFF with one strip, compressed as JPEG (7).
fn tiff(width: u32, height: u32, strip: &[u8]) -> Vec<u8> {
    let entries = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 7),
        (262, 1),
        (273, 0),
        (277, 1),
        (278, height),
        (279, strip.len() as u32),
    ];
    let data = 8 + 2 + 12 * entries.len() as u32 + 4;
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    tiff.extend((entries.len() as u16).to_le_bytes());
    for (tag, value) in entries {
        tiff.extend((tag as u16).to_le_bytes());
        tiff.extend(4u16.to_le_bytes());
        tiff.extend(1u32.to_le_bytes());
        tiff.extend(if tag == 273 { data } else { value }.to_le_bytes());
    }
    tiff.extend([0; 4]);
    tiff.extend_from_slice(strip);
    tiff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_say_what_they_are_meant_to() {
        let limits = gpu_kernels::DecodeLimits::default();
        let header = gpu_kernels::inspect(&restart_markers(4096), &limits).unwrap();
        assert_eq!((header.width, header.height), (640, 480));
        let bomb = strip_bomb();
        assert!(bomb.len() < 500, "{}", bomb.len());
        assert!(bomb.starts_with(b"II*\0"));
    }
}
