//! Files that demand much work: each is rejected by its headers, or decoded within the bounds that these imply, and a time
//! limit ends it.

use std::time::{Duration, Instant};

use gpu_kernels::decode::Until;
use gpu_kernels::{DecodeLimits, inspect};

use crate::bombs::{self, Fate};
use crate::draw::{code_of, decoder};

#[test]
fn each_costly_file_meets_its_fate() {
    let limits = DecodeLimits::default();
    let mut decoder = decoder();
    for bomb in bombs::all() {
        let (name, bytes) = (bomb.name, &bomb.bytes);
        let header = inspect(bytes, &limits);
        let decoded = decoder.decode(bytes, 256).map(|image| image.pixels.len());
        match bomb.fate {
            Fate::Refused(code) => {
                assert_eq!(header.map_err(|error| error.code()), Err(code), "{name}");
                assert_eq!(decoded.map_err(|error| error.code()), Err(code), "{name}");
            }
            Fate::Fails(code) => {
                assert!(header.is_ok(), "{name}: {header:?}");
                assert_eq!(decoded.map_err(|error| error.code()), Err(code), "{name}");
            }
            Fate::Decoded => {
                let header = header.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(header.format, bomb.format, "{name}");
                let pixels = u64::from(header.width) * u64::from(header.height);
                assert!(header.decode_memory <= (60 << 20) + 12 * pixels, "{name}: {header:?}");
                assert!(decoded.is_ok(), "{name}: {decoded:?}");
            }
        }
        decoder.trim();
        assert!(decoder.retained_bytes() <= 24 << 20, "{name} leaves {} bytes", decoder.retained_bytes());
    }
}

#[test]
fn every_format_is_given_up_when_time_is_over() {
    let mut decoder = decoder();
    for bomb in bombs::all().into_iter().filter(|bomb| bomb.fate == Fate::Decoded) {
        for side in [u32::MAX, 256] {
            let over = Until::from(Instant::now());
            assert_eq!(
                code_of(decoder.decode_until(&bomb.bytes, side, over)),
                "image_too_costly",
                "{}",
                bomb.name
            );
        }
        // The next decode is not affected.
        assert!(decoder.decode(&bomb.bytes, 256).is_ok(), "{}", bomb.name);
    }
}

#[test]
fn a_decode_that_has_begun_is_given_up() {
    // Gigapixels of work, which no machine completes in this time.
    let bytes = bombs::scans(100, 3000);
    let limits = DecodeLimits::default();
    assert!(inspect(&bytes, &limits).is_ok());
    let until = Until::from(Instant::now() + Duration::from_millis(20));
    assert_eq!(code_of(decoder().decode_until(&bytes, u32::MAX, until)), "image_too_costly");
}

#[test]
fn the_scans_of_an_image_are_bounded_by_its_pixels() {
    let limits = DecodeLimits { max_pixels: 1_000_000, max_scans: 100, ..DecodeLimits::default() };
    // 20 scans of a megapixel at most, five times as many of a fifth.
    for (side, most) in [(1000, 20), (448, 99), (440, 100), (64, 100)] {
        assert!(inspect(&bombs::scans(most, side), &limits).is_ok(), "{side}");
        let error = inspect(&bombs::scans(most + 1, side), &limits).unwrap_err();
        assert_eq!(error.code(), "too_many_scans");
        assert!(error.to_string().contains(&format!("more than {most} scans")), "{error}");
    }
}

#[test]
fn huffman_codes_of_a_webp_are_counted_before_they_are_made() {
    let limits = DecodeLimits::default();
    // The header's bound includes the limit for codes: the bitstream is not parsed for it.
    let memory = |count| inspect(&bombs::groups(count), &limits).unwrap().decode_memory;
    let bytes = |count| bombs::groups(count).len() as u64;
    assert_eq!(memory(10) - bytes(10), memory(65_536) - bytes(65_536));
    let refused = decoder().decode(&bombs::groups(65_536), 256).map(|_| ()).unwrap_err();
    assert_eq!(refused.code(), "unsupported_image");
    assert!(refused.to_string().contains("Huffman codes that take more than"), "{refused}");
}

#[test]
fn reading_the_header_of_a_webp_does_not_follow_its_bitstream() {
    // The data after the size is not a valid code.
    let mut bytes = bombs::groups(1);
    bytes[25..].fill(0xFF);
    assert!(inspect(&bytes, &DecodeLimits::default()).is_ok());
    assert_eq!(code_of(decoder().decode(&bytes, 256)), "corrupt_image");
}
