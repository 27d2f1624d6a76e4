//! Files that declare far more than they contain: rejected by their headers, or decoded within bounds.

use gpu_kernels::{DecodeLimits, FormatSet, ImageFormat, inspect};
use image::{DynamicImage, ImageBuffer};

use crate::draw::{Jpeg, code_of, decode, decoder, encode, grainy, smooth};
use crate::write::{tiff, tiff_entries};

/// Asserts that `inspect` and `decode` reject it before a buffer for pixels is allocated; returns the message.
fn refused(bytes: &[u8], code: &str) -> String {
    assert_eq!(code_of(inspect(bytes, &DecodeLimits::default())), code);
    let mut decoder = decoder();
    let error = decoder.decode(bytes, 256).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert_eq!(decoder.retained_bytes(), 0);
    error.to_string()
}

#[test]
fn a_strip_that_claims_to_be_huge_is_refused_at_once() {
    let message = refused(include_bytes!("../field/strip_bomb.tif"), "unsupported_image");
    assert!(message.contains("JPEG compression (7) within TIFF"), "{message}");
}

#[test]
fn tiles_in_separate_planes_are_refused_and_panic_nowhere() {
    let message = refused(include_bytes!("../field/tiled_planar.tif"), "unsupported_image");
    assert!(message.contains("tiles with separate planes"), "{message}");
}

#[test]
fn a_tiff_whose_parts_do_not_fit_its_size_is_refused() {
    let entries = tiff_entries(8, 8, 8, 1, 64);
    let with = |tag: u16, count: u32, value: u32| {
        let mut entries = entries.clone();
        entries.retain(|entry| entry.0 != tag);
        entries.push((tag, 4, count, value));
        entries.sort_by_key(|entry| entry.0);
        tiff(&entries, &[7; 64])
    };
    assert!(decode(&tiff(&entries, &[7; 64])).is_ok());
    refused(&with(278, 1, 4), "corrupt_image");
    refused(&with(278, 1, 0), "corrupt_image");
    refused(&with(279, 1, 4_000_000_000), "corrupt_image");
    refused(&with(279, 500_000_000, 8), "corrupt_image");
    refused(&with(322, 1, 1 << 31), "corrupt_image");
    refused(&with(277, 1, 60_000), "unsupported_image");
    // One pixel across in tiles of a million.
    let mut tiled: Vec<_> = tiff_entries(1, 50_000, 8, 1, 64).into_iter().filter(|e| e.0 != 278).collect();
    tiled.extend([(322, 4, 1, 1 << 20), (323, 4, 1, 1 << 20), (324, 4, 1, 8), (325, 4, 1, 64)]);
    refused(&tiff(&tiled, &[7; 64]), "unsupported_image");
}

#[test]
fn a_tag_that_comes_twice_is_refused() {
    let mut entries = tiff_entries(8, 8, 8, 1, 64);
    entries.push((256, 4, 1, 4));
    assert!(refused(&tiff(&entries, &[7; 64]), "corrupt_image").contains("tag 256 is repeated"));
}

#[test]
fn separate_planes_in_strips_are_decoded() {
    let mut entries = tiff_entries(4, 2, 8, 2, 8);
    for entry in &mut entries {
        match entry.0 {
            277 => entry.3 = 3,
            258 => *entry = (258, 3, 1, 8),
            _ => {}
        }
    }
    entries.retain(|entry| ![273, 279].contains(&entry.0));
    entries.push((284, 3, 1, 2));
    // Offsets and counts of three strips are stored after the strips.
    let directory = 8 + 2 + 12 * (entries.len() as u32 + 2) + 4;
    entries.extend([(273u16, 4u16, 3u32, 0u32), (279, 4, 3, directory + 24 + 12)]);
    entries.sort_by_key(|entry| entry.0);
    let mut bytes = tiff(
        &entries
            .iter()
            .map(|e| if e.0 == 273 { (9999, 4, 3, directory + 24) } else { *e })
            .collect::<Vec<_>>(),
        &[],
    );
    // `tiff` writes the position of its strip to every entry 273: written as another tag, and renamed.
    let at = bytes.windows(2).position(|pair| pair == 9999u16.to_le_bytes()).unwrap();
    bytes[at..at + 2].copy_from_slice(&273u16.to_le_bytes());
    bytes.extend((0..24u8).map(|at| at * 10));
    for plane in 0..3u32 {
        bytes.extend((directory + 8 * plane).to_le_bytes());
    }
    for _ in 0..3 {
        bytes.extend(8u32.to_le_bytes());
    }
    let decoded = decode(&bytes).unwrap();
    let expected: Vec<u8> = (0..8u8).flat_map(|at| [at * 10, (at + 8) * 10, (at + 16) * 10]).collect();
    assert_eq!(decoded.pixels, expected);
}

#[test]
fn lossless_webps_of_another_encoder_are_decoded() {
    // Written by libwebp: predictors, colour transforms, a palette, a cache of colours, compressed alpha.
    for bytes in [
        &include_bytes!("../field/lossless_alpha.webp")[..],
        include_bytes!("../field/lossless_palette.webp"),
        include_bytes!("../field/lossy_alpha.webp"),
    ] {
        let header = inspect(bytes, &DecodeLimits::default()).unwrap();
        assert_eq!((header.width, header.height), (160, 120));
        assert_eq!(decode(bytes).unwrap().pixels.len(), 3 * 160 * 120);
    }
}

#[test]
fn formats_that_are_not_accepted_are_refused_by_name() {
    let drawn = smooth(16, 16);
    let formats: FormatSet = [ImageFormat::Jpeg, ImageFormat::Png].into_iter().collect();
    let limits = DecodeLimits { formats, ..DecodeLimits::default() };
    assert!(inspect(&Jpeg::default().encode(&drawn), &limits).is_ok());
    for format in [image::ImageFormat::Gif, image::ImageFormat::Tiff] {
        let bytes = drawn.encode(format);
        let error = inspect(&bytes, &limits).unwrap_err();
        assert_eq!(error.code(), "unsupported_type");
        assert!(error.to_string().ends_with("; send JPEG or PNG"), "{error}");
        assert_eq!(code_of(gpu_kernels::Decoder::new(limits).unwrap().decode(&bytes, 8)), "unsupported_type");
    }
    assert!(inspect(b"text", &limits).unwrap_err().to_string().ends_with("; send JPEG or PNG"));
}

#[test]
fn memory_is_told_from_the_header_and_never_beyond_the_formula() {
    let drawn = grainy(320, 240);
    let wide = DynamicImage::ImageRgba16(ImageBuffer::from_pixel(320, 240, image::Rgba([9u16, 9, 9, 9])));
    let mut files = vec![
        Jpeg::default().encode(&drawn),
        Jpeg { progressive: true, subsampling: turbojpeg::Subsamp::None, ..Jpeg::default() }.encode(&drawn),
        encode(&wide, image::ImageFormat::Png),
        encode(&wide, image::ImageFormat::Tiff),
    ];
    for format in [image::ImageFormat::WebP, image::ImageFormat::Bmp, image::ImageFormat::Gif] {
        files.push(drawn.encode(format));
    }
    for bytes in files {
        let header = inspect(&bytes, &DecodeLimits::default()).unwrap();
        let pixels = 320 * 240;
        assert!(header.decode_memory >= 3 * pixels, "{header:?}");
        assert!(header.decode_memory <= (60 << 20) + 12 * pixels, "{header:?}");
    }
}

#[test]
fn a_lossless_jpeg_is_exact_or_refused_by_name() {
    let drawn = grainy(64, 48);
    let mut bytes =
        Jpeg { lossless: true, subsampling: turbojpeg::Subsamp::None, ..Jpeg::default() }.encode(&drawn);
    assert_eq!(decode(&bytes).unwrap(), drawn);
    let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC3]).unwrap();
    bytes[frame + 11] = 0x22;
    assert!(refused(&bytes, "unsupported_image").contains("lossless JPEG with subsampled colours"));
}
