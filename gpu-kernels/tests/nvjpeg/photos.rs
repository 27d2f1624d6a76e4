//! Eligibility of damaged photos: nvJPEG never gets one that the CPU rejects or decodes differently.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gpu_kernels::decode::nvjpeg::{EntropyCheck, NvJpegBackend, eligible};
use gpu_kernels::{DecodeLimits, Decoder};
use turbojpeg::{Colorspace, Subsamp};

use crate::drawn::{GREY, Kind, PLAIN, PROGRESSIVE, SUBSAMPLINGS, in_scans, position, with_restarts};

/// Duration of the test with random damage.
const TIME: Duration = Duration::from_secs(4);

/// The labelled photos in WEIR_PHOTOS, if it is set.
fn photos() -> Vec<Vec<u8>> {
    let Some(folder) = std::env::var_os("WEIR_PHOTOS").map(PathBuf::from) else {
        eprintln!("WEIR_PHOTOS is not set: only drawn pictures were damaged");
        return Vec::new();
    };
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "jpg")).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn drawn() -> Vec<Vec<u8>> {
    let mut files: Vec<_> =
        SUBSAMPLINGS.iter().map(|&(subsampling, _)| Kind { subsampling, ..PLAIN }.draw(61, 47)).collect();
    files.extend([GREY.draw(61, 47), PROGRESSIVE.draw(61, 47), with_restarts(1, 8), with_restarts(3, 8)]);
    files.extend([Kind { optimised: true, ..PLAIN }.draw(61, 47), in_scans(3)]);
    files
}

/// Whether both checks accept it for some engine; then the CPU must decode it to the same planes.
fn passes(bytes: &[u8], entropy: &mut EntropyCheck, decoder: &mut Decoder) -> bool {
    let limits = DecodeLimits { max_pixels: 1 << 22, ..DecodeLimits::default() };
    let on_hardware = eligible(bytes, NvJpegBackend::Hardware, &limits);
    let on_cuda = eligible(bytes, NvJpegBackend::Cuda, &limits);
    let Ok(found) = on_cuda else {
        assert!(on_hardware.is_err(), "what CUDA does not take, the hardware does not either");
        return false;
    };
    let given = &bytes[..found.length];
    if entropy.check(given).is_err() {
        return false;
    }
    for shorter_side in [u32::MAX, 32] {
        let image =
            decoder.decode(bytes, shorter_side).unwrap_or_else(|error| panic!("the CPU refuses: {error}"));
        assert_eq!((image.original_width, image.original_height), (found.planes.width, found.planes.height));
        assert_eq!(image.orientation, found.header.orientation);
    }
    let seen = turbojpeg::read_header(given).unwrap();
    let (subsampling, colours) = (seen.subsamp, seen.colorspace);
    if found.planes.components == 1 {
        assert_eq!((subsampling, colours), (Subsamp::Gray, Colorspace::Gray));
    } else {
        let shifts = (found.planes.shift_x, found.planes.shift_y);
        assert_eq!(colours, Colorspace::YCbCr);
        assert!(SUBSAMPLINGS.contains(&(subsampling, shifts)), "{subsampling:?} {shifts:?}");
    }
    true
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// One to three changed bits, or a changed byte, in its headers or anywhere; some are truncated, and some of these get an EOI.
fn damaged(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let scan = position(&bytes, 0xDA, 0) + 16;
    let reach = if random.below(4) > 0 { scan.min(bytes.len()) } else { bytes.len() };
    for _ in 0..=random.below(3) {
        // The first three bytes make it a JPEG.
        let at = 3 + random.below(reach - 3);
        bytes[at] ^= if random.below(2) == 0 { 1 << random.below(8) } else { random.below(256) as u8 };
    }
    if random.below(4) == 0 {
        let length = random.below(bytes.len());
        bytes.truncate(length);
        if random.below(2) == 0 {
            bytes.extend([0xFF, 0xD9]);
        }
    }
    bytes
}

#[test]
fn what_passes_both_checks_the_cpu_decodes_to_the_same_picture() {
    let mut entropy = EntropyCheck::default();
    let mut decoder = Decoder::new(DecodeLimits::default()).unwrap();
    let photos = photos();
    let sound = photos.iter().filter(|photo| passes(photo, &mut entropy, &mut decoder)).count();
    println!("of {} photos {sound} are for nvJPEG", photos.len());
    let files: Vec<_> = photos.into_iter().chain(drawn()).collect();
    let mut random = Random(1);
    let (mut tried, mut passed) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < TIME {
        // Small pictures are tested more often, since they take less time.
        let from = if random.below(8) > 0 { files.len() - 10 } else { 0 };
        let file = &files[from + random.below(files.len() - from)];
        passed += usize::from(passes(&damaged(file, &mut random), &mut entropy, &mut decoder));
        tried += 1;
    }
    println!("of {tried} damaged files {passed} still are");
    assert!(passed > 0 && passed < tried);
}

#[test]
fn no_part_of_a_photo_is_eligible() {
    let limits = DecodeLimits::default();
    let mut random = Random(2);
    for file in photos().into_iter().chain(drawn()) {
        for _ in 0..20 {
            let cut = &file[..random.below(file.len())];
            assert!(eligible(cut, NvJpegBackend::Cuda, &limits).is_err(), "cut at {}", cut.len());
        }
    }
}
