//! The result for an image does not depend on images that were decoded before.

use std::sync::LazyLock;

use gpu_kernels::decode::nvjpeg::{NvJpegBackend, eligible};
use gpu_kernels::{DecodeLimits, Decoder};
use proptest::prelude::*;

use crate::draw::{Jpeg, Picture, decoder, grainy};
use crate::write::{tiff, tiff_entries};

/// A webcam's frame without Huffman tables, the same with them, and another picture with its own tables.
const WITHOUT_TABLES: &[u8] = include_bytes!("../field/webcam_no_tables.jpg");
const WITH_TABLES: &[u8] = include_bytes!("../field/webcam_full.jpg");
const OWN_TABLES: &[u8] = include_bytes!("../field/own_tables.jpg");

/// Without every segment of a kind.
fn without(jpeg: &[u8], code: u8) -> Vec<u8> {
    let mut out = jpeg[..2].to_vec();
    let mut at = 2;
    while jpeg[at + 1] != 0xDA {
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        if jpeg[at + 1] != code {
            out.extend_from_slice(&jpeg[at..end]);
        }
        at = end;
    }
    out.extend_from_slice(&jpeg[at..]);
    out
}

fn answer(decoder: &mut Decoder, bytes: &[u8], shorter_side: u32) -> Result<Picture, String> {
    decoder.decode(bytes, shorter_side).map(|image| Picture::of(&image)).map_err(|error| error.to_string())
}

/// Sides at which the smallest of the field's pictures is decoded at every scale, by our decoder and by the library.
const SIDES: [u32; 4] = [u32::MAX, 100, 50, 20];

#[test]
fn a_jpeg_without_huffman_tables_has_the_standard_ones_whatever_came_before() {
    for side in SIDES {
        let expected = answer(&mut decoder(), WITH_TABLES, side).unwrap();
        let mut used = decoder();
        for before in [WITHOUT_TABLES, OWN_TABLES, b"\xFF\xD8\xFF no image", OWN_TABLES] {
            let _ = answer(&mut used, before, side);
            assert_eq!(answer(&mut used, WITHOUT_TABLES, side).as_ref(), Ok(&expected), "side {side}");
        }
    }
    let limits = DecodeLimits::default();
    for backend in [NvJpegBackend::Hardware, NvJpegBackend::Cuda] {
        assert!(eligible(WITHOUT_TABLES, backend, &limits).is_err(), "nvJPEG may have other tables");
    }
}

#[test]
fn colours_outside_a_gifs_palette_show_nothing_of_the_image_before() {
    // One pixel of colour 3, of a palette of two.
    let mut gif = b"GIF89a\x01\0\x01\0\x80\0\0\x01\x02\x03\x04\x05\x06".to_vec();
    // LZW of three bits: clear, 3, end.
    gif.extend(b",\0\0\0\0\x01\0\x01\0\0\x02\x02\x5C\x01\0;");
    let expected = answer(&mut decoder(), &gif, u32::MAX).unwrap();
    let mut used = decoder();
    for level in [0, 90, 255] {
        let before = crate::draw::picture(1, 1, |_, _, _| level).encode(image::ImageFormat::Png);
        answer(&mut used, &before, u32::MAX).unwrap();
        assert_eq!(answer(&mut used, &gif, u32::MAX).as_ref(), Ok(&expected), "after {level}");
    }
}

#[test]
fn a_jpeg_without_quantization_tables_is_corrupt_whatever_came_before() {
    let bare = without(WITH_TABLES, 0xDB);
    for side in SIDES {
        let mut used = decoder();
        for before in [&bare[..], OWN_TABLES, WITH_TABLES] {
            let _ = answer(&mut used, before, side);
            let error = used.decode(&bare, side).map(|_| ()).unwrap_err();
            assert_eq!(error.code(), "corrupt_image", "side {side}: {error}");
        }
    }
    assert!(eligible(&bare, NvJpegBackend::Cuda, &DecodeLimits::default()).is_err());
}

/// Valid files of every kind, and some invalid ones.
static FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let drawn = grainy(72, 56);
    let plain = Jpeg::default();
    let mut files = vec![
        WITHOUT_TABLES.to_vec(),
        WITH_TABLES.to_vec(),
        OWN_TABLES.to_vec(),
        without(OWN_TABLES, 0xC4),
        without(OWN_TABLES, 0xDB),
        plain.encode(&drawn),
        without(&plain.encode(&drawn), 0xC4),
        Jpeg { progressive: true, ..plain }.encode(&drawn),
        without(&Jpeg { progressive: true, ..plain }.encode(&drawn), 0xDB),
        Jpeg { arithmetic: true, ..plain }.encode(&drawn),
        Jpeg { lossless: true, ..plain }.encode(&drawn),
        tiff(&tiff_entries(4, 4, 8, 1, 16), &[7; 16]),
        include_bytes!("../field/tiled_planar.tif").to_vec(),
        include_bytes!("../field/strip_bomb.tif").to_vec(),
    ];
    for format in [
        image::ImageFormat::Png,
        image::ImageFormat::WebP,
        image::ImageFormat::Bmp,
        image::ImageFormat::Gif,
        image::ImageFormat::Tiff,
    ] {
        files.push(drawn.encode(format));
    }
    files
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_images_is_answered_as_by_fresh_decoders(
        sequence in prop::collection::vec(
            (0..FILES.len(), 0..SIDES.len(), prop::option::of(any::<prop::sample::Index>()), any::<bool>()), 2..8),
    ) {
        let mut used = decoder();
        for (kind, side, damage, cut) in sequence {
            let mut bytes = FILES[kind].clone();
            if let Some(at) = damage {
                let at = at.index(bytes.len());
                if cut { bytes.truncate(at) } else { bytes[at] ^= 0x55 }
            }
            let fresh = answer(&mut decoder(), &bytes, SIDES[side]);
            prop_assert_eq!(answer(&mut used, &bytes, SIDES[side]), fresh);
        }
    }
}
