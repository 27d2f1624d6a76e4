//! The CUDA kernel's arithmetic, compiled for the host, compared with the definition, Pillow's numbers and the CPU:
//! interleaved pixels, and planes of luma and chroma as a JPEG decoder outputs them. Races and launch configuration are tested
//! by the GPU suite.

mod host;

use gpu_kernels::preprocess::{Element, ImageDescriptor, PixelLayout, TensorDescriptor};
use gpu_kernels::{Orientation, PreprocessSpec};
use proptest::prelude::*;

use crate::draw::{Picture, noise, picture, window};
use host::{Stored, levels};

/// A spec that leaves levels unchanged.
fn plain(resize: u32, crop: u32) -> PreprocessSpec {
    PreprocessSpec { resize, crop, mean: [0.0; 3], std: [1.0; 3] }
}

/// The picture's rows with the alignment of a device, and no byte more.
fn rgb(picture: &Picture, spec: &PreprocessSpec, slot: u32) -> Stored {
    let layout = PixelLayout::Rgb { plane: (0, 0) };
    let [pitch, ..] = layout.least_pitches(picture.width);
    let mut plane = Vec::with_capacity(pitch as usize * picture.height as usize);
    for row in picture.pixels.chunks_exact(3 * picture.width as usize) {
        plane.extend_from_slice(row);
        plane.resize(plane.len().next_multiple_of(pitch as usize), 0xAA);
    }
    let layout = PixelLayout::Rgb { plane: (0, pitch) };
    let size = (picture.width, picture.height);
    let descriptor = ImageDescriptor::new(layout, size, picture.orientation, spec, slot);
    Stored { descriptor, planes: [plane, Vec::new(), Vec::new()] }
}

fn run(spec: &PreprocessSpec, element: Element, images: &[Stored]) -> Vec<f64> {
    let bytes = images.len() * spec.output_len() * element.bytes();
    host::values(element, &host::run(TensorDescriptor::new(0, element, spec), images, bytes))
}

pub(crate) fn run_one(drawn: &Picture, resize: u32, crop: u32) -> Vec<f64> {
    let spec = plain(resize, crop);
    run(&spec, Element::F32, &[rgb(drawn, &spec, 0)])
}

/// Largest distance from the definition.
fn distance(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().all(|value| value.is_finite()), "values were not written");
    got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn drawn(width: u32, height: u32, orientation: Orientation) -> Picture {
    Picture { orientation, ..picture(width, height, noise) }
}

#[test]
fn every_size_orientation_and_window_is_the_definition() {
    let sizes = [
        (1, 1),
        (1, 2),
        (2, 1),
        (3, 5),
        (4, 4),
        (31, 33),
        (223, 224),
        (256, 256),
        (257, 255),
        (640, 480),
        (1, 3000),
        (3000, 1),
        (7, 2500),
        (2500, 9),
    ];
    let windows = [(256, 224), (224, 224), (8, 1), (33, 17), (1, 1), (65, 64)];
    for (width, height) in sizes {
        for (at, (resize, crop)) in windows.into_iter().enumerate() {
            let orientations = if at == 3 { &Orientation::ALL[..] } else { &Orientation::ALL[at..=at] };
            for &orientation in orientations {
                let drawn = drawn(width, height, orientation);
                let got = run_one(&drawn, resize, crop);
                let distance = distance(&got, &levels(&drawn, resize, crop));
                assert!(distance < 0.01, "{width} x {height}, {orientation:?}, {resize}/{crop}: {distance}");
            }
        }
    }
}

#[test]
fn large_frames_are_the_definition() {
    for (width, height, orientation) in [
        (1919, 1081, Orientation::Upright),
        (1920, 1080, Orientation::Rotate90),
        (3840, 2160, Orientation::Upright),
        (7680, 4320, Orientation::Transverse),
    ] {
        let drawn = drawn(width, height, orientation);
        let got = run_one(&drawn, 256, 224);
        let distance = distance(&got, &levels(&drawn, 256, 224));
        assert!(distance < 0.01, "{width} x {height}, {orientation:?}: {distance}");
    }
}

#[test]
fn strips_of_millions_of_pixels_are_the_definition() {
    for (width, height) in [(1, 3_000_000), (3_000_000, 1)] {
        let drawn = drawn(width, height, Orientation::Upright);
        let got = run_one(&drawn, 256, 224);
        let distance = distance(&got, &levels(&drawn, 256, 224));
        assert!(distance < 0.01, "{width} x {height}: {distance}");
    }
}

#[test]
fn the_cpu_and_the_kernel_agree_on_every_pixel() {
    for (width, height) in [(1, 1), (333, 500), (640, 480), (1920, 1080), (40, 4000)] {
        for orientation in [Orientation::Upright, Orientation::Rotate270] {
            let drawn = drawn(width, height, orientation);
            let cpu = window(&drawn.as_image(), 256, 224);
            let cpu: Vec<f64> = cpu.into_iter().map(f64::from).collect();
            let distance = distance(&run_one(&drawn, 256, 224), &cpu);
            assert!(distance <= 1.0, "{width} x {height}, {orientation:?}: {distance} levels");
        }
    }
}

#[test]
fn each_image_of_a_batch_goes_to_its_slot() {
    let spec = plain(32, 20);
    let sizes = [(50, 40), (1, 1), (33, 200), (4, 4), (640, 360)];
    let pictures = sizes.map(|(width, height)| drawn(width, height, Orientation::FlipVertical));
    // The first image has the last slot.
    let slots = (0..5).rev();
    let images: Vec<_> =
        pictures.iter().zip(slots).map(|(picture, slot)| rgb(picture, &spec, slot)).collect();
    let got = run(&spec, Element::F32, &images);
    for (got, picture) in got.chunks_exact(spec.output_len()).zip(pictures.iter().rev()) {
        assert!(distance(got, &levels(picture, 32, 20)) < 0.01);
    }
}

#[test]
fn half_precision_is_the_nearest_of_its_numbers() {
    // Normal numbers, subnormal numbers, and numbers that are too large.
    for std in [1.0, 128.0, 3.3e5, 2.0e7, 1.0e9, 2.0e-3] {
        let spec = PreprocessSpec { resize: 16, crop: 16, mean: [3.0, 127.0, 250.0], std: [std; 3] };
        let picture = drawn(16, 16, Orientation::Upright);
        let exact = run(&spec, Element::F32, &[rgb(&picture, &spec, 0)]);
        let halves = run(&spec, Element::F16, &[rgb(&picture, &spec, 0)]);
        for (exact, half) in exact.into_iter().zip(halves) {
            if exact.abs() >= 65520.0 {
                assert_eq!(half, exact.signum() * f64::INFINITY);
                continue;
            }
            let exponent = if exact == 0.0 { -14 } else { (exact.abs().log2().floor() as i32).max(-14) };
            let spacing = 2f64.powi(exponent - 10);
            assert!((exact - half).abs() <= spacing / 2.0, "{exact} became {half}");
        }
    }
}

#[test]
fn mean_and_deviation_are_applied_per_channel() {
    let spec = PreprocessSpec { resize: 8, crop: 4, mean: [1.0, 2.0, 3.0], std: [0.5, 2.0, 4.0] };
    let picture = picture(9, 9, |_, _, channel| [10, 20, 30][channel as usize]);
    let got = run(&spec, Element::F32, &[rgb(&picture, &spec, 0)]);
    for (plane, expected) in got.chunks_exact(16).zip([18.0, 9.0, 6.75]) {
        assert!(plane.iter().all(|value| (value - expected).abs() < 1e-4), "{plane:?}");
    }
}

/// A plane whose rows have `pitch` bytes, the last of them padding.
fn plane(width: u32, height: u32, pitch: u32, channel: u32) -> Vec<u8> {
    (0..height)
        .flat_map(|y| (0..pitch).map(move |x| if x < width { noise(x, y, channel) } else { 0xAA }))
        .collect()
}

/// ITU-T T.871, section 7.
fn to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (f64::from(y), f64::from(cb) - 128.0, f64::from(cr) - 128.0);
    let rgb = [y + 1.402 * cr, y - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587, y + 1.772 * cb];
    rgb.map(|level| level.round().clamp(0.0, 255.0) as u8)
}

fn check(width: u32, height: u32, shift: Option<(u32, u32)>, spec: &PreprocessSpec) {
    let (shift_x, shift_y) = shift.unwrap_or_default();
    let none = (0, 0);
    let layout = |[luma, blue, red]: [u32; 3]| match shift {
        Some(_) => PixelLayout::YCbCr { planes: [(0, luma), (0, blue), (0, red)], shift_x, shift_y },
        None => PixelLayout::Grey { plane: (0, luma) },
    };
    let pitches = match shift {
        Some(_) => PixelLayout::YCbCr { planes: [none; 3], shift_x, shift_y },
        None => PixelLayout::Grey { plane: none },
    }
    .least_pitches(width);
    let chroma = (width.div_ceil(1 << shift_x), height.div_ceil(1 << shift_y));
    let luma = plane(width, height, pitches[0], 0);
    let [blue, red] = match shift {
        Some(_) => [1, 2].map(|channel| plane(chroma.0, chroma.1, pitches[1], channel)),
        None => [Vec::new(), Vec::new()],
    };
    let expected = picture(width, height, |x, y, channel| {
        let at = |plane: &[u8], pitch: u32, x: u32, y: u32| plane[(y * pitch + x) as usize];
        let luma = at(&luma, pitches[0], x, y);
        let (cx, cy) = (x >> shift_x, y >> shift_y);
        match shift {
            Some(_) => {
                to_rgb(luma, at(&blue, pitches[1], cx, cy), at(&red, pitches[2], cx, cy))[channel as usize]
            }
            None => luma,
        }
    });
    let orientation = Orientation::Rotate90;
    let descriptor = ImageDescriptor::new(layout(pitches), (width, height), orientation, spec, 0);
    let got = run(spec, Element::F32, &[Stored { descriptor, planes: [luma, blue, red] }]);
    let expected = levels(&Picture { orientation, ..expected }, spec.resize, spec.crop);
    let far = distance(&got, &expected);
    // A level between two may be rounded to either.
    assert!(far <= 1.0, "{width} x {height}, chroma {shift:?}: {far} levels");
    let mean = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum::<f64>() / got.len() as f64;
    assert!(mean < 0.02, "{width} x {height}, chroma {shift:?}: {mean} levels on average");
}

#[test]
fn every_chroma_layout_is_the_definition_of_its_rgb() {
    let shifts = [Some((0, 0)), Some((1, 0)), Some((1, 1)), Some((0, 1)), Some((2, 0)), Some((2, 1)), None];
    for shift in shifts {
        for (width, height) in [(1, 1), (2, 3), (5, 7), (17, 16), (321, 240), (641, 479)] {
            check(width, height, shift, &plain(64, 48));
        }
    }
    check(1921, 1081, Some((1, 1)), &plain(256, 224));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_picture_is_the_definition(
        width in 1u32..600,
        height in 1u32..600,
        resize in 1u32..120,
        part in 0.0f64..1.0,
        exif in 1u8..=8,
    ) {
        let crop = (1.0 + part * f64::from(resize - 1)) as u32;
        let drawn = drawn(width, height, Orientation::from_exif(exif).unwrap());
        let distance = distance(&run_one(&drawn, resize, crop), &levels(&drawn, resize, crop));
        prop_assert!(distance < 0.01, "{distance}");
    }
}
