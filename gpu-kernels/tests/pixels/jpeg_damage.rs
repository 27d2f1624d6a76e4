//! Which damaged JPEGs are rejected, and which irregular ones, as cameras write them, are accepted.

use gpu_kernels::{DecodeLimits, inspect};

use crate::draw::{Jpeg, Picture, code_of, decode, grainy};
use crate::write::with_segment;

fn kinds() -> [Jpeg; 4] {
    let plain = Jpeg::default();
    [
        plain,
        Jpeg { progressive: true, ..plain },
        Jpeg { subsampling: turbojpeg::Subsamp::None, ..plain },
        Jpeg { subsampling: turbojpeg::Subsamp::Gray, ..plain },
    ]
}

/// Position of the `nth` marker `code`.
fn position(bytes: &[u8], code: u8, nth: usize) -> usize {
    bytes.windows(2).enumerate().filter(|(_, pair)| *pair == [0xFF, code]).nth(nth).unwrap().0
}

fn spliced(bytes: &[u8], at: usize, insert: &[u8]) -> Vec<u8> {
    [&bytes[..at], insert, &bytes[at..]].concat()
}

#[test]
fn a_jpeg_cut_anywhere_is_refused() {
    for kind in kinds() {
        let bytes = kind.encode(&grainy(160, 120));
        let start = position(&bytes, 0xDA, 0);
        let within = (start..bytes.len() - 2).step_by(bytes.len() / 60);
        for cut in (3..start).step_by(7).chain(within).chain([bytes.len() - 3]) {
            assert_eq!(code_of(decode(&bytes[..cut])), "corrupt_image", "{kind:?} cut at {cut}");
            // Truncated, and closed with an EOI, as a careless camera or proxy might.
            let closed = [&bytes[..cut], &[0xFF, 0xD9]].concat();
            assert_eq!(code_of(decode(&closed)), "corrupt_image", "{kind:?} cut at {cut} and closed");
        }
    }
}

#[test]
fn a_progressive_jpeg_cut_between_two_scans_is_refused() {
    let bytes = Jpeg { progressive: true, ..Jpeg::default() }.encode(&grainy(160, 120));
    let scans = bytes.windows(2).filter(|pair| *pair == [0xFF, 0xDA]).count();
    assert!(scans > 3);
    for nth in 1..scans {
        let at = position(&bytes, 0xDA, nth);
        let table = bytes[..at].windows(2).rposition(|pair| pair == [0xFF, 0xC4]).unwrap();
        assert_eq!(code_of(decode(&bytes[..at])), "corrupt_image", "before scan {nth}");
        assert_eq!(code_of(decode(&bytes[..table])), "corrupt_image", "before the table of scan {nth}");
    }
}

/// Files that cause a warning of the library and still contain every pixel.
fn oddities(bytes: &[u8], progressive: bool) -> Vec<(&'static str, Vec<u8>)> {
    let end = bytes.len() - 2;
    let tables = position(bytes, 0xDB, 0);
    let mut old_version = bytes.to_vec();
    old_version[position(bytes, 0xE0, 0) + 9] = 7;
    let mut odd = vec![
        ("bytes behind the end", [bytes, b"a trailer of the camera \xFF\xD8\xFF"].concat()),
        ("bytes between the data and the end", spliced(bytes, end, &[0x3A, 0, 0x55])),
        ("fill bytes before a marker", spliced(bytes, tables, &[0xFF; 5])),
        ("bytes between two segments", spliced(bytes, tables, b"\0\0\0")),
        ("an unknown JFIF version", old_version),
        ("an unknown Adobe transform", {
            let adobe = with_segment(bytes, 0xEE, b"Adobe\0\x64\0\0\0\0\x07");
            // Without JFIF, which comes first in deciding about the colours.
            let jfif = position(&adobe, 0xE0, 0);
            [&adobe[..jfif], &adobe[jfif + 18..]].concat()
        }),
        ("no end marker", bytes[..end].to_vec()),
        ("bytes in place of the end marker", [&bytes[..end], &[0x3A, 0, 0x55]].concat()),
        ("half an end marker", bytes[..end + 1].to_vec()),
    ];
    if !progressive {
        let scan = position(bytes, 0xDA, 0);
        let header = scan + 2 + usize::from(bytes[scan + 3]);
        let mut parameters = bytes.to_vec();
        parameters[header - 3..header].copy_from_slice(&[0, 0, 0]);
        odd.push(("scan parameters of a progressive scan", parameters));
    }
    odd
}

#[test]
fn an_odd_jpeg_with_all_its_pixels_is_taken() {
    for kind in kinds() {
        let bytes = kind.encode(&grainy(160, 120));
        let plain = decode(&bytes).unwrap();
        for (what, odd) in oddities(&bytes, kind.progressive) {
            let decoded = decode(&odd).unwrap_or_else(|error| panic!("{what}, {kind:?}: {error}"));
            assert_eq!(decoded, plain, "{what}, {kind:?}");
            assert!(inspect(&odd, &DecodeLimits::default()).is_ok(), "{what}");
        }
    }
}

#[test]
fn an_oddity_does_not_hide_missing_pixels() {
    for kind in kinds() {
        let bytes = kind.encode(&grainy(160, 120));
        for (what, odd) in oddities(&bytes, kind.progressive) {
            let start = position(&odd, 0xDA, 0);
            for part in [1, 2, 3] {
                let cut = start + (bytes.len() - start) * part / 4;
                for tail in [&[][..], &[0xFF, 0xD9], &[0x00, 0xFF, 0xD9]] {
                    let cut = [&odd[..cut], tail].concat();
                    assert_eq!(code_of(decode(&cut)), "corrupt_image", "{what}, {kind:?}, {tail:?}");
                }
            }
        }
    }
}

/// The headers of a JPEG of 64 x 8 without subsampling, assembled by hand.
fn headers(components: u8, restart_interval: u8) -> Vec<u8> {
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
    out.extend([0xFF, 0xDD, 0, 4, 0, restart_interval]);
    out
}

/// Grey, in eight restart intervals of one block each: a DC difference of +64 and an end of block.
fn restarts(segments: &[&[u8]], end: &[u8]) -> Vec<u8> {
    let mut out = headers(1, 1);
    out.extend([0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0]);
    for (at, segment) in segments.iter().enumerate() {
        if at > 0 {
            out.extend([0xFF, 0xD0 + (at as u8 - 1) % 8]);
        }
        out.extend_from_slice(segment);
    }
    out.extend_from_slice(end);
    out
}

/// 0 (category 7), 1000000 (+64), 0 (end of block), then ones as padding: nine bits in two bytes.
const BLOCK: &[u8] = &[0b0100_0000, 0b0111_1111];
const END: &[u8] = &[0xFF, 0xD9];

fn level(picture: &Picture) -> u8 {
    assert!(picture.pixels.iter().all(|&level| level == picture.pixels[0]));
    picture.pixels[0]
}

#[test]
fn bytes_before_a_restart_marker_are_taken_as_webcams_write_them() {
    assert_eq!(level(&decode(&restarts(&[BLOCK; 8], END)).unwrap()), 192);
    // A few bytes disappear in the library's bit buffer; many cause a warning that could hide another.
    for padding in [1, 2, 9, 40] {
        let padded = [BLOCK, &vec![0; padding]].concat();
        let mut segments = [BLOCK; 8];
        segments[2] = &padded;
        assert_eq!(level(&decode(&restarts(&segments, END)).unwrap()), 192, "{padding} bytes");
    }
    // Without an end marker, data hidden by the warning may be missing.
    let padded = [BLOCK, &[0; 40]].concat();
    let mut segments = [BLOCK; 8];
    segments[2] = &padded;
    assert_eq!(code_of(decode(&restarts(&segments, &[]))), "corrupt_image");
}

#[test]
fn a_missing_restart_interval_is_refused() {
    let padded = [BLOCK, &[0; 40]].concat();
    for count in 1..8 {
        let mut segments = vec![BLOCK; count];
        assert_eq!(code_of(decode(&restarts(&segments, END))), "corrupt_image", "{count} of 8");
        segments[0] = &padded;
        assert_eq!(code_of(decode(&restarts(&segments, END))), "corrupt_image", "{count} of 8, padded");
    }
    let mut segments = [BLOCK; 8];
    segments[4] = &[];
    assert_eq!(code_of(decode(&restarts(&segments, END))), "corrupt_image");
}

#[test]
fn a_sequential_jpeg_of_three_scans_needs_all_of_them() {
    // Eight blocks of nine bits: 0 1000000 0, then 0 0111111 0 (back by 64) in turn.
    let data: u128 = (0..8).fold(0, |bits, block| bits << 9 | [0b0_1000_0000, 0b0_0111_1110][block % 2]);
    let data = (data << 56).to_be_bytes();
    let scan = |id: u8| [&[0xFF, 0xDA, 0, 8, 1, id, 0, 0, 63, 0], &data[..9]].concat();
    let whole = [headers(3, 0), scan(1), scan(2), scan(3)].concat();
    let expected = decode(&[&whole[..], END].concat()).unwrap();
    assert_eq!(decode(&whole).unwrap(), expected);
    assert_eq!(decode(&[&whole[..], &[0; 30], END].concat()).unwrap(), expected);
    for scans in [vec![scan(1)], vec![scan(1), scan(2)], vec![scan(1), scan(2), scan(3)[..14].to_vec()]] {
        assert_eq!(code_of(decode(&[headers(3, 0), scans.concat()].concat())), "corrupt_image");
    }
}
