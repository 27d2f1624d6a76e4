//! Input that must be rejected: with which code, with which message, and before memory is allocated.

use std::time::{Duration, Instant};

use gpu_kernels::{DecodeError, DecodeLimits, Decoder, inspect};

use crate::draw::{Jpeg, Picture, code_of, decode, decoder, grainy, picture, smooth};
use crate::write::{crc32, idat, iend, ihdr, png, tiff, tiff_entries, vp8x, webp};

/// Asserts that `inspect` and `decode` reject it; returns the message.
fn refused(bytes: &[u8], code: &str) -> String {
    let mut decoder = decoder();
    assert_eq!(code_of(inspect(bytes, &DecodeLimits::default())), code);
    let error = decoder.decode(bytes, 256).unwrap_err();
    assert_eq!(error.code(), code);
    // Nothing was allocated for the declared pixels.
    assert_eq!(decoder.retained_bytes(), 0);
    error.to_string()
}

#[test]
fn an_empty_image_is_refused() {
    assert_eq!(refused(b"", "empty_image"), "the image is empty (0 bytes)");
}

#[test]
fn what_is_no_image_is_named() {
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
    let avif = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1";
    for (bytes, name) in [
        (&heic[..], "HEIC"),
        (avif, "AVIF"),
        (b"\0\0\0\x18ftypisom", "an MP4"),
        (b"%PDF-1.7", "a PDF document"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "an SVG drawing"),
        (b"<?xml version=\"1.0\"?>\n<svg/>", "an SVG drawing"),
        (b"\n<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"{\"image\": 1}", "JSON text"),
        (b"BMW is a make of car, not a bitmap", "text"),
        (b"hello", "text"),
        ("über".as_bytes(), "text"),
        (b"data:image/png;base64,iVBORw0KGgo=", "a data: URL"),
        (b"\xFF\x0A\0\0", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
        (b"RIFF\x04\0\0\0WAVE", "a RIFF file that is not WebP"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1F\x8B\x08", "gzip data"),
        (b"\xFF\xD8", "none of the known image types"),
        (&[0; 64], "none of the known image types"),
    ] {
        let message = refused(bytes, "unsupported_type");
        assert!(message.contains(&format!("look like {name}")), "{message}");
        assert!(message.ends_with("send JPEG, PNG, WebP, BMP, GIF or TIFF"), "{message}");
    }
}

#[test]
fn a_header_that_claims_millions_of_pixels_is_refused_in_a_kilobyte() {
    let mut jpeg = Jpeg::default().encode(&smooth(16, 16));
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x75, 0x30, 0x75, 0x30]);
    let mut bmp = smooth(4, 4).encode(image::ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&30_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&(-30_000i32).to_le_bytes());
    let mut gif = picture(4, 4, |_, _, _| 0).encode(image::ImageFormat::Gif);
    gif[6..10].copy_from_slice(&[0x30, 0x75, 0x30, 0x75]);
    let bare_header = png(&[ihdr(30_000, 30_000, 8, 2)]);
    let whole = png(&[ihdr(30_000, 30_000, 16, 6), idat(&[&[0; 8]]), iend()]);
    let strip = tiff(&tiff_entries(30_000, 30_000, 8, 1, 4), &[0; 4]);
    let lossless = webp(&[(b"VP8L", vec![0x2F, 0xFF, 0xFF, 0xFF, 0x0F])]);
    let lossy = webp(&[(b"VP8 ", vec![0x10, 0, 0, 0x9D, 0x01, 0x2A, 0xFF, 0x3F, 0xFF, 0x3F])]);
    let canvas = webp(&[vp8x(0, 30_000, 30_000), (b"VP8L", vec![0x2F, 0, 0, 0, 0])]);
    let inside =
        webp(&[vp8x(0, 1, 1), (b"VP8 ", vec![0x10, 0, 0, 0x9D, 0x01, 0x2A, 0xFF, 0x3F, 0xFF, 0x3F])]);
    for bytes in [&jpeg, &bmp, &gif, &bare_header, &whole, &strip, &lossless, &lossy, &canvas, &inside] {
        assert!(bytes.len() < 1024);
        let message = refused(bytes, "too_many_pixels");
        assert!(message.ends_with("pixels; at most 50000000 are accepted"), "{message}");
    }
    let message = refused(&jpeg, "too_many_pixels");
    assert!(message.starts_with("the image is 30000 x 30000 = 900000000 pixels"), "{message}");
}

#[test]
fn a_size_of_zero_is_corrupt() {
    let mut jpeg = Jpeg::default().encode(&smooth(16, 16));
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 7].copy_from_slice(&[0, 0]);
    let mut bmp = smooth(4, 4).encode(image::ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&[0; 4]);
    let mut gif = picture(4, 4, |_, _, _| 0).encode(image::ImageFormat::Gif);
    gif[6..8].copy_from_slice(&[0; 2]);
    let strip = tiff(&tiff_entries(0, 5, 8, 1, 4), &[0; 4]);
    for bytes in [jpeg, bmp, gif, strip, png(&[ihdr(0, 9, 8, 2), iend()])] {
        refused(&bytes, "corrupt_image");
    }
}

#[test]
fn more_bytes_than_the_limit_are_refused() {
    let bytes = Jpeg::default().encode(&smooth(64, 64));
    let limits = DecodeLimits { max_bytes: bytes.len() - 1, ..DecodeLimits::default() };
    let error = inspect(&bytes, &limits).unwrap_err();
    assert!(matches!(error, DecodeError::ImageTooLarge { bytes: got, max } if got == max + 1));
    assert_eq!(code_of(Decoder::new(limits).unwrap().decode(&bytes, 256)), "image_too_large");
    let limits = DecodeLimits { max_bytes: bytes.len(), max_pixels: 64 * 64, ..limits };
    assert!(Decoder::new(limits).unwrap().decode(&bytes, 256).is_ok());
    let limits = DecodeLimits { max_pixels: 64 * 64 - 1, ..limits };
    assert_eq!(code_of(Decoder::new(limits).unwrap().decode(&bytes, 256)), "too_many_pixels");
}

#[test]
fn a_progressive_jpeg_of_ten_thousand_scans_is_refused_at_once() {
    let bytes = Jpeg { progressive: true, ..Jpeg::default() }.encode(&grainy(64, 64));
    let last = bytes.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).unwrap();
    let (head, scan) = bytes[..bytes.len() - 2].split_at(last);
    let many = [head, &scan.repeat(10_000), &[0xFF, 0xD9]].concat();
    let begin = Instant::now();
    let message = refused(&many, "too_many_scans");
    assert!(begin.elapsed() < Duration::from_secs(20), "took {:?}", begin.elapsed());
    assert_eq!(message, "the jpeg has more than 100 scans, the limit for its size");

    let scans = bytes.windows(2).filter(|pair| *pair == [0xFF, 0xDA]).count() as u32;
    let limited = |max_scans| Decoder::new(DecodeLimits { max_scans, ..DecodeLimits::default() }).unwrap();
    assert!(limited(scans).decode(&bytes, 64).is_ok());
    assert_eq!(code_of(limited(scans - 1).decode(&bytes, 64)), "too_many_scans");
}

#[test]
fn every_format_is_refused_when_cut() {
    let drawn = grainy(64, 48);
    for format in [
        image::ImageFormat::Png,
        image::ImageFormat::WebP,
        image::ImageFormat::Bmp,
        image::ImageFormat::Gif,
        image::ImageFormat::Tiff,
    ] {
        let bytes = drawn.encode(format);
        for part in 1..10 {
            let cut = &bytes[..bytes.len() * part / 10];
            let code = code_of(decode(cut));
            assert!(code == "corrupt_image", "{format:?} cut at {part}/10: {code}");
        }
    }
}

#[test]
fn pixels_that_unpack_to_more_than_their_header_says_take_no_memory() {
    // 9 megapixels after a header that declares 10 x 10.
    let mut bomb = picture(3000, 3000, |_, _, _| 0).encode(image::ImageFormat::Png);
    bomb[16..24].copy_from_slice(&[0, 0, 0, 10, 0, 0, 0, 10]);
    let sum = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&sum.to_be_bytes());
    let mut decoder = decoder();
    if let Err(error) = decoder.decode(&bomb, 256) {
        assert_eq!(error.code(), "corrupt_image");
    }
    assert!(decoder.retained_bytes() < 4096);

    // A GIF whose only frame is 65535 x 65535 on a canvas of 4 x 4.
    let mut gif = picture(4, 4, |_, _, _| 0).encode(image::ImageFormat::Gif);
    let frame = gif.windows(5).position(|part| part == [0x2C, 0, 0, 0, 0]).unwrap();
    gif[frame + 5..frame + 9].copy_from_slice(&[0xFF; 4]);
    assert!(matches!(code_of(decoder.decode(&gif, 256)), "unsupported_image" | "corrupt_image"));
    assert!(decoder.retained_bytes() < 4096);
}

#[test]
fn the_name_of_a_format_does_not_matter_and_an_error_leaves_the_decoder_usable() {
    let jpeg = Jpeg::default().encode(&grainy(160, 120));
    let progressive = Jpeg { progressive: true, ..Jpeg::default() }.encode(&grainy(160, 120));
    let expected = decode(&jpeg).unwrap();
    let png = smooth(20, 10).encode(image::ImageFormat::Png);
    let mut decoder = decoder();
    for bad in [
        &[][..],
        b"text",
        &jpeg[..100],
        &jpeg[..jpeg.len() / 2],
        &progressive[..progressive.len() / 2],
        &png[..png.len() / 2],
        &[0xFF, 0xD8, 0xFF, 0xDA, 0, 0],
        &[0xFF, 0xD8, 0xFF, 0xC0, 0, 3, 8],
    ] {
        assert!(decoder.decode(bad, 256).is_err());
        assert_eq!(Picture::of(&decoder.decode(&jpeg, 256).unwrap()), expected);
        assert_eq!(Picture::of(&decoder.decode(&png, 256).unwrap()), smooth(20, 10));
    }
}

#[test]
fn memory_of_a_giant_is_given_back() {
    let mut decoder = decoder();
    let giant = picture(4000, 4000, |_, _, _| 9).encode(image::ImageFormat::Png);
    decoder.decode(&giant, 256).unwrap();
    assert!(decoder.retained_bytes() >= 48_000_000);
    decoder.decode(&smooth(20, 10).encode(image::ImageFormat::Png), 256).unwrap();
    assert!(decoder.retained_bytes() <= 64 << 20);
    assert!(decoder.retained_bytes() < 48_000_000, "{}", decoder.retained_bytes());
}
