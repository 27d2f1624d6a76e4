//! Random damage: an image or a typed error, never a panic, never more memory than the limits allow.

use std::sync::LazyLock;

use gpu_kernels::{CpuPreprocessor, DecodeLimits, Decoder, PreprocessSpec, inspect};
use proptest::prelude::*;

use crate::draw::{Jpeg, grainy};
use crate::write::{exif, tiff, tiff_entries, with_exif};

const MAGIC: [&[u8]; 7] = [
    b"\xFF\xD8\xFF",
    b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",
    b"RIFF\xFF\0\0\0WEBPVP8",
    b"BM\0\0\0\0\0\0\0\0\0\0\0\0\x28\0\0\0",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
];

/// A sound file of every kind.
static SOUND: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let drawn = grainy(40, 30);
    let mut files = vec![
        with_exif(&Jpeg::default().encode(&drawn), &exif(6, false)),
        Jpeg { progressive: true, ..Jpeg::default() }.encode(&drawn),
        Jpeg { arithmetic: true, ..Jpeg::default() }.encode(&drawn),
        Jpeg { lossless: true, ..Jpeg::default() }.encode(&drawn),
        tiff(&tiff_entries(4, 4, 8, 1, 16), &[7; 16]),
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

fn survives(bytes: &[u8]) {
    let limits =
        DecodeLimits { max_bytes: 1 << 20, max_pixels: 1 << 20, max_scans: 20, ..DecodeLimits::default() };
    let mut decoder = Decoder::new(limits).unwrap();
    let header = inspect(bytes, &limits);
    match decoder.decode(bytes, 24) {
        Ok(image) => {
            let header = header.unwrap();
            assert_eq!((header.format, header.orientation), (image.format, image.orientation));
            assert_eq!((header.width, header.height), (image.original_width, image.original_height));
            assert_eq!(image.pixels.len(), 3 * image.width as usize * image.height as usize);
            let spec = PreprocessSpec { resize: 24, crop: 20, mean: [127.0; 3], std: [128.0; 3] };
            let mut out = vec![f32::NAN; spec.output_len()];
            CpuPreprocessor::new(spec).unwrap().run(&image, &mut out).unwrap();
            assert!(out.iter().all(|value| value.is_finite()));
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_ne!(error.code(), "decoder_setup");
        }
    }
    assert!(decoder.retained_bytes() <= 12 << 20);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_behind_a_magic(kind in 0..MAGIC.len(), tail in prop::collection::vec(any::<u8>(), 0..400)) {
        survives(&[MAGIC[kind], &tail].concat());
    }

    #[test]
    fn sound_files_with_changed_bytes(
        kind in 0..SOUND.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        near_the_head in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = SOUND[kind].clone();
        let reach = if near_the_head { bytes.len().min(700) } else { bytes.len() };
        for (at, value) in changes {
            let at = at.index(reach);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        survives(&bytes);
    }
}
