//! Images of one format: an image or a typed error, within the guaranteed memory and within a time limit.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use gpu_kernels::{
    CpuPreprocessor, DecodeError, DecodeLimits, Decoder, ImageFormat, ImageHeader, PreprocessSpec, inspect,
};

use crate::harness::measured;

/// Largest file.
const MAX_BYTES: usize = 1 << 20;
/// Large enough for a header to ask for much more than its file holds.
const MAX_PIXELS: u64 = 4 << 20;
/// In addition to the encoded bytes and 12 bytes per declared pixel, as documented in `gpu_kernels::decode`.
const FIXED: u64 = 60 << 20;
const PER_PIXEL: u64 = 12;
/// CPU time of one decode. The slowest valid image of this size takes a tenth of it in a debug build.
const TIME: Duration = Duration::from_secs(20);
/// The side to which a model's image is resized.
const SMALL: u32 = 24;

/// An image with custom Huffman tables, decoded before another image, on which it must have no effect.
const BEFORE: &[u8] = include_bytes!("../seeds/decode_jpeg/own-tables.jpg");

/// The result of an image: its size and a hash of its pixels, or the code of the error.
type Answer = Result<(u32, u32, u64), &'static str>;

/// Limits that accept `format` alone.
#[must_use]
pub fn limits(format: ImageFormat) -> DecodeLimits {
    DecodeLimits {
        max_bytes: MAX_BYTES,
        max_pixels: MAX_PIXELS,
        formats: [format].into_iter().collect(),
        ..DecodeLimits::default()
    }
}

/// Checks the property.
pub fn check(format: ImageFormat, bytes: &[u8]) {
    let limits = limits(format);
    let (header, cost) = measured(|| inspect(bytes, &limits));
    let most = match &header {
        Ok(header) => {
            let most = FIXED + PER_PIXEL * u64::from(header.width) * u64::from(header.height);
            assert!(header.decode_memory <= most, "{header:?} declares more than {most} bytes");
            most
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            FIXED
        }
    };
    let most = most + bytes.len() as u64;
    assert!(cost.bytes <= most, "reading the headers took {} bytes, {most} are allowed", cost.bytes);
    assert!(cost.cpu <= TIME, "reading the headers took {:?}", cost.cpu);

    let answers = [u32::MAX, SMALL].map(|side| {
        let (answer, cost) = measured(|| {
            let mut decoder = Decoder::new(limits).expect("a decoder");
            answer(&mut decoder, bytes, side)
        });
        assert!(cost.bytes <= most, "decoding took {} bytes, {most} are allowed: {header:?}", cost.bytes);
        assert!(cost.cpu <= TIME, "decoding took {:?}", cost.cpu);
        answer
    });
    let [whole, small] = answers;
    assert_eq!(whole.err(), small.err(), "whether an image is decoded depends on the requested size");
    if let Err(error) = &header {
        assert_eq!(whole.err(), Some(error.code()), "the header is refused and the image is not");
    }

    let mut used = Decoder::new(limits).expect("a decoder");
    let _ = used.decode(BEFORE, SMALL);
    for (side, fresh) in [(SMALL, small), (u32::MAX, whole)] {
        assert_eq!(answer(&mut used, bytes, side), fresh, "the answer depends on what was decoded before");
    }
    used.trim();
    assert!(used.retained_bytes() <= 64 << 20, "{} bytes are kept", used.retained_bytes());
    if let Ok(header) = header {
        preprocess(&mut used, &header, bytes);
    }
}

fn answer(decoder: &mut Decoder, bytes: &[u8], shorter_side: u32) -> Answer {
    let image = match decoder.decode(bytes, shorter_side) {
        Ok(image) => image,
        Err(error) => {
            assert!(!matches!(error, DecodeError::Setup(_)), "{error}");
            return Err(error.code());
        }
    };
    assert_eq!(image.pixels.len(), 3 * image.width as usize * image.height as usize);
    let mut sum = DefaultHasher::new();
    image.pixels.hash(&mut sum);
    (image.original_width, image.original_height, image.orientation).hash(&mut sum);
    Ok((image.width, image.height, sum.finish()))
}

fn preprocess(decoder: &mut Decoder, header: &ImageHeader, bytes: &[u8]) {
    let Ok(image) = decoder.decode(bytes, SMALL) else { return };
    assert_eq!((header.format, header.orientation), (image.format, image.orientation));
    assert_eq!((header.width, header.height), (image.original_width, image.original_height));
    let spec = PreprocessSpec { resize: SMALL, crop: 20, mean: [127.0; 3], std: [128.0; 3] };
    let mut out = vec![f32::NAN; spec.output_len()];
    CpuPreprocessor::new(spec).expect("a preprocessor").run(&image, &mut out).expect("a tensor");
    assert!(out.iter().all(|value| value.is_finite()));
}
