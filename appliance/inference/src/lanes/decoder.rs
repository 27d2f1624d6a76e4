//! The decoder of a lane: a panic is reported as the image's error and only costs the decoder, and memory of a large image is
//! released.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gpu_kernels::decode::Until;
use gpu_kernels::{DecodeError, DecodeLimits, Decoder, Image, ImageFormat};

/// Memory that a decoder may keep for its next image: a 4K frame at full size. An image's reservation ends when it is decoded,
/// so what is kept is not covered by the budget.
const MAX_RETAINED: usize = 32 << 20;

/// An encoded image.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'a> {
    /// The encoded bytes.
    pub bytes: &'a [u8],
    /// When decoding is cancelled.
    pub until: Until,
}

impl<'a> From<&'a [u8]> for Encoded<'a> {
    /// An image without a time limit.
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, until: Until::NEVER }
    }
}

/// Decodes images: [`Decoder`], or the simulated one of the tests.
pub(super) trait Decode: Send {
    fn decode(&mut self, image: Encoded<'_>, shorter_side: u32) -> Result<Image<'_>, DecodeError>;
    fn retained_bytes(&self) -> usize;
    fn trim(&mut self);
}

impl Decode for Decoder {
    fn decode(&mut self, image: Encoded<'_>, shorter_side: u32) -> Result<Image<'_>, DecodeError> {
        self.decode_until(image.bytes, shorter_side, image.until)
    }

    fn trim(&mut self) {
        Self::trim(self);
    }

    fn retained_bytes(&self) -> usize {
        Self::retained_bytes(self)
    }
}

/// Builds a decoder.
pub(super) type MakeDecoder = Box<dyn Fn() -> Result<Box<dyn Decode>, DecodeError> + Send>;

/// A decoder that is replaced after a panic.
pub(super) struct LaneDecoder {
    make: MakeDecoder,
    /// None after a panic.
    decoder: Option<Box<dyn Decode>>,
}

impl std::fmt::Debug for LaneDecoder {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("LaneDecoder")
    }
}

impl LaneDecoder {
    /// A decoder with these limits.
    ///
    /// # Errors
    /// [`DecodeError::Setup`].
    pub(super) fn new(limits: DecodeLimits) -> Result<Self, DecodeError> {
        Self::made_by(Box::new(move || Ok(Box::new(Decoder::new(limits)?))))
    }

    pub(super) fn made_by(make: MakeDecoder) -> Result<Self, DecodeError> {
        let decoder = Some(make()?);
        Ok(Self { make, decoder })
    }

    /// Decodes an image and calls `then` with its pixels. A panic of either is reported as the image's error.
    ///
    /// # Errors
    /// Every [`DecodeError`].
    pub(super) fn with<R>(
        &mut self,
        image: Encoded<'_>,
        shorter_side: u32,
        then: impl FnOnce(&Image<'_>) -> R,
    ) -> Result<R, DecodeError> {
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => (self.make)()?,
        };
        let decode = || decoder.decode(image, shorter_side).map(|image| then(&image));
        match catch_unwind(AssertUnwindSafe(decode)) {
            Ok(outcome) => {
                if decoder.retained_bytes() > MAX_RETAINED {
                    decoder.trim();
                }
                self.decoder = Some(decoder);
                outcome
            }
            Err(_) => {
                // The decoder's state is undefined, and dropping it may panic as well.
                let _ = catch_unwind(AssertUnwindSafe(move || drop(decoder)));
                Err(failed(image.bytes))
            }
        }
    }
}

/// The error of an image on which the decoder panicked.
pub(super) fn failed(bytes: &[u8]) -> DecodeError {
    let format = gpu_kernels::decode::sniff(bytes).unwrap_or(ImageFormat::Jpeg);
    DecodeError::CorruptImage { format, detail: "the decoder failed on it".into() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn encoded(bytes: &[u8]) -> Encoded<'_> {
        bytes.into()
    }

    /// Decodes everything to one grey pixel, and panics on images that begin with a 255.
    struct Fragile {
        retained: usize,
    }

    impl Decode for Fragile {
        fn decode(&mut self, image: Encoded<'_>, _: u32) -> Result<Image<'_>, DecodeError> {
            assert!(image.bytes.first() != Some(&255), "simulated fault of a decoder");
            self.retained = image.bytes.len();
            Ok(Image {
                format: ImageFormat::Png,
                width: 1,
                height: 1,
                pixels: &[128; 3],
                orientation: gpu_kernels::Orientation::Upright,
                original_width: 1,
                original_height: 1,
            })
        }

        fn retained_bytes(&self) -> usize {
            self.retained
        }

        fn trim(&mut self) {
            self.retained = 0;
        }
    }

    /// A decoder that panics on images that begin with a 255, and the number of decoders built.
    pub(in super::super) fn fragile() -> (LaneDecoder, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let make: MakeDecoder = Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(Fragile { retained: 0 }))
        });
        (LaneDecoder::made_by(make).unwrap(), made)
    }

    #[test]
    fn a_panic_is_the_images_error_and_the_next_one_has_a_fresh_decoder() {
        let (mut decoder, made) = fragile();
        for round in 1..4 {
            let error = decoder.with(encoded(&[255]), 1, |_| ()).unwrap_err();
            assert_eq!(error.code(), "corrupt_image");
            assert_eq!(decoder.with(encoded(b"x"), 1, |image| image.width).unwrap(), 1);
            assert_eq!(made.load(Ordering::SeqCst), round + 1);
        }
        let error = decoder.with(encoded(b"x"), 1, |_| panic!("the next stage")).unwrap_err();
        assert_eq!(error.code(), "corrupt_image");
    }

    #[test]
    fn what_a_giant_leaves_behind_is_released() {
        let (mut decoder, made) = fragile();
        let left = |decoder: &LaneDecoder| decoder.decoder.as_ref().unwrap().retained_bytes();
        decoder.with(encoded(&vec![0; MAX_RETAINED]), 1, |_| ()).unwrap();
        assert_eq!(left(&decoder), MAX_RETAINED);
        decoder.with(encoded(&vec![0; MAX_RETAINED + 1]), 1, |_| ()).unwrap();
        assert_eq!((left(&decoder), made.load(Ordering::SeqCst)), (0, 1));
    }

    #[test]
    fn twenty_megabytes_of_restart_markers_leave_little_behind() {
        let mut bytes = include_bytes!("../../../../gpu-kernels/tests/field/own_tables.jpg").to_vec();
        let scan = bytes.windows(2).position(|pair| pair == [0xFF, 0xDA]).unwrap();
        let data = scan + 2 + usize::from(u16::from_be_bytes([bytes[scan + 2], bytes[scan + 3]]));
        bytes.truncate(data);
        // The largest number of MCUs, with a restart marker after each.
        let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        bytes[frame + 5..frame + 9].copy_from_slice(&[0x1A, 0, 0x1A, 0]);
        bytes.splice(scan..scan, [0xFF, 0xDD, 0, 4, 0, 1]);
        bytes.extend((0..(20 << 20) / 2 - 1000).flat_map(|at: usize| [0xFF, 0xD0 + (at % 8) as u8]));
        let mut decoder = LaneDecoder::new(DecodeLimits::default()).unwrap();
        for side in [16, 256, u32::MAX] {
            let error = decoder.with(encoded(&bytes), side, |_| ()).unwrap_err();
            assert_eq!(error.code(), "corrupt_image", "{error}");
            let left = decoder.decoder.as_ref().unwrap().retained_bytes();
            assert!(left <= MAX_RETAINED, "{left} bytes are kept");
        }
    }
}
