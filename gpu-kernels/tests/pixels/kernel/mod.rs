//! The CUDA kernel's arithmetic, compiled for the host, against the definition, Pillow's numbers and the CPU.
//! Races and launch configuration are the GPU suite's to test.

mod definition;
mod host;
mod planar;

use gpu_kernels::preprocess::{Element, ImageDescriptor, PixelLayout, TensorDescriptor};
use gpu_kernels::{Orientation, PreprocessSpec};
use proptest::prelude::*;

use crate::draw::{Picture, noise, picture, window};
use host::Stored;

/// Levels as they are.
fn plain(resize: u32, crop: u32) -> PreprocessSpec {
    PreprocessSpec { resize, crop, mean: [0.0; 3], std: [1.0; 3] }
}

/// The picture's rows, padded as a device wants them and no byte more.
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
                let distance = distance(&got, &definition::levels(&drawn, resize, crop));
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
        let distance = distance(&got, &definition::levels(&drawn, 256, 224));
        assert!(distance < 0.01, "{width} x {height}, {orientation:?}: {distance}");
    }
}

#[test]
fn strips_of_millions_of_pixels_are_the_definition() {
    for (width, height) in [(1, 3_000_000), (3_000_000, 1)] {
        let drawn = drawn(width, height, Orientation::Upright);
        let got = run_one(&drawn, 256, 224);
        let distance = distance(&got, &definition::levels(&drawn, 256, 224));
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
        assert!(distance(got, &definition::levels(picture, 32, 20)) < 0.01);
    }
}

#[test]
fn half_precision_is_the_nearest_of_its_numbers() {
    // Normal numbers, numbers below the least normal one, and what is too large.
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
        let distance = distance(&run_one(&drawn, resize, crop), &definition::levels(&drawn, resize, crop));
        prop_assert!(distance < 0.01, "{distance}");
    }
}
