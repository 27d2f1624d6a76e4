//! Preprocessing compared with Pillow (the numbers in reference.txt, written by make_reference.py), for every orientation, and
//! the valid range of its parameters.

use gpu_kernels::{CpuPreprocessor, Image, Orientation, PreprocessSpec};

use crate::draw::{Picture, noise, picture, window};
use crate::kernel;

/// The formulas of make_reference.py.
fn level(kind: &str, x: u32, y: u32, channel: u32, width: u32, height: u32) -> u8 {
    match kind {
        "noise" => noise(x, y, channel),
        "gradient" => match channel {
            0 => (x * 255 / (width - 1).max(1)) as u8,
            1 => (y * 255 / (height - 1).max(1)) as u8,
            _ => (x * 3 + y * 5) as u8,
        },
        "edges" => 255 * ((x / (3 + channel) + y / (5 - channel)) & 1) as u8,
        "mixed" => {
            level(["gradient", "noise", "edges"][(x * 3 / width) as usize], x, y, channel, width, height)
        }
        other => panic!("unknown picture {other}"),
    }
}

fn compare(window: impl Fn(&Picture, u32, u32) -> Vec<f64>) {
    let mut lines = include_str!("../reference/reference.txt").lines().filter(|line| !line.starts_with('#'));
    let (mut cases, mut pixels, mut off_by_one) = (0, 0, 0);
    while let Some(case) = lines.next() {
        let fields: Vec<&str> = case.split(' ').collect();
        let [width, height, exif, resize, crop, step] =
            [1, 2, 3, 4, 5, 6].map(|at| fields[at].parse().unwrap());
        let drawn = picture(width, height, |x, y, channel| level(fields[0], x, y, channel, width, height));
        let orientation = Orientation::from_exif(exif as u8).unwrap();
        let got = window(&Picture { orientation, ..drawn }, resize, crop);
        for y in (0..crop).step_by(step as usize) {
            let row = lines.next().unwrap();
            for (at, x) in (0..crop).step_by(step as usize).enumerate() {
                for channel in 0..3 {
                    let hex = 6 * at + 2 * channel;
                    let expected = u8::from_str_radix(&row[hex..hex + 2], 16).unwrap();
                    let value = got[(channel * crop as usize + y as usize) * crop as usize + x as usize];
                    let distance = (value - f64::from(expected)).abs();
                    assert!(distance <= 1.0, "{case}: {value} for {expected} at {x}, {y}, channel {channel}");
                    off_by_one += u32::from(distance > 0.6);
                    pixels += 1;
                }
            }
        }
        cases += 1;
    }
    assert_eq!(cases, 32);
    // Pillow rounds between the passes of the filter; the CPU does so as well, in another order. Most pixels agree
    // nevertheless.
    assert!(off_by_one * 10 < pixels, "{off_by_one} of {pixels} values are off by one");
}

#[test]
fn every_pixel_is_within_one_level_of_pillow() {
    compare(|picture, resize, crop| {
        window(&picture.as_image(), resize, crop).into_iter().map(f64::from).collect()
    });
}

#[test]
fn every_pixel_of_the_kernel_is_within_one_level_of_pillow() {
    compare(kernel::run_one);
}

#[test]
fn strips_of_millions_of_pixels_are_preprocessed_without_a_large_intermediate() {
    for (width, height) in [(1, 3_000_000), (3_000_000, 1)] {
        let drawn = Picture { width, height, pixels: vec![77; 9_000_000], orientation: Orientation::Upright };
        assert!(window(&drawn.as_image(), 256, 224).iter().all(|&value| value == 77.0));
    }
}

#[test]
fn a_picture_of_one_pixel_fills_the_window() {
    let drawn = picture(1, 1, |_, _, channel| [10, 20, 30][channel as usize]);
    let got = window(&drawn.as_image(), 256, 224);
    for (plane, level) in got.chunks_exact(224 * 224).zip([10.0, 20.0, 30.0]) {
        assert!(plane.iter().all(|&value| value == level));
    }
}

/// Rotated by the `image` crate.
fn turned(picture: &Picture, orientation: Orientation) -> Picture {
    let mut image = image::DynamicImage::ImageRgb8(picture.as_rgb());
    image.apply_orientation(image::metadata::Orientation::from_exif(orientation.exif()).unwrap());
    let rgb = image.into_rgb8();
    Picture {
        width: rgb.width(),
        height: rgb.height(),
        pixels: rgb.into_raw(),
        orientation: Orientation::Upright,
    }
}

#[test]
fn every_orientation_equals_turning_first() {
    for (width, height) in [(101, 74), (74, 101), (57, 57), (20, 31), (3, 400), (1, 9), (500, 375)] {
        let drawn = picture(width, height, noise);
        for (resize, crop) in [(41, 32), (41, 41), (40, 31), (74, 64)] {
            for orientation in Orientation::ALL {
                let stored = Picture { orientation, ..drawn.clone() };
                let upright = turned(&drawn, orientation);
                let got = window(&stored.as_image(), resize, crop);
                let expected = window(&upright.as_image(), resize, crop);
                let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 1.0, "{orientation:?} of {width} x {height} to {resize}, {crop}: {worst}");
            }
        }
    }
}

#[test]
fn without_resizing_every_orientation_is_exact() {
    let drawn = picture(13, 9, noise);
    for orientation in Orientation::ALL {
        let stored = Picture { orientation, ..drawn.clone() };
        let upright = turned(&drawn, orientation);
        assert_eq!(window(&stored.as_image(), 9, 8), window(&upright.as_image(), 9, 8), "{orientation:?}");
    }
}

#[test]
fn the_values_of_exif_map_both_ways() {
    for (value, orientation) in (1..).zip(Orientation::ALL) {
        assert_eq!(orientation.exif(), value);
        assert_eq!(Orientation::from_exif(value), Some(orientation));
    }
    assert_eq!(Orientation::from_exif(0), None);
    assert_eq!(Orientation::from_exif(9), None);
    assert_eq!(Orientation::default(), Orientation::Upright);
}

#[test]
fn an_image_with_too_few_pixels_is_refused() {
    let spec = PreprocessSpec { resize: 8, crop: 8, mean: [0.0; 3], std: [1.0; 3] };
    let mut preprocessor = CpuPreprocessor::new(spec).unwrap();
    let mut out = vec![0.0; 3 * 64];
    let drawn = picture(4, 4, noise);
    let whole = drawn.as_image();
    assert!(preprocessor.run(&whole, &mut out).is_ok());
    assert!(preprocessor.run(&Image { pixels: &whole.pixels[1..], ..whole }, &mut out).is_err());
    assert!(preprocessor.run(&Image { width: 0, ..whole }, &mut out).is_err());
    let error = preprocessor.run(&whole, &mut out[1..]).unwrap_err();
    assert_eq!(error.to_string(), "the output has 191 values; one image takes 192");
}

fn sound() -> PreprocessSpec {
    PreprocessSpec { resize: 256, crop: 224, mean: [127.0; 3], std: [128.0; 3] }
}

#[test]
fn the_output_is_normalised_per_channel_in_planes() {
    let spec = PreprocessSpec { resize: 2, crop: 2, mean: [10.0, 20.0, 30.0], std: [1.0, 2.0, 4.0] };
    let drawn = picture(2, 2, |x, y, channel| (x + 2 * y) as u8 + [10, 20, 30][channel as usize]);
    let mut out = [0.0; 12];
    CpuPreprocessor::new(spec).unwrap().run(&drawn.as_image(), &mut out).unwrap();
    assert_eq!(out, [0.0, 1.0, 2.0, 3.0, 0.0, 0.5, 1.0, 1.5, 0.0, 0.25, 0.5, 0.75]);
}

#[test]
fn values_out_of_bounds_are_refused_by_name() {
    let tiny = f32::MIN_POSITIVE;
    for (spec, message) in [
        (PreprocessSpec { resize: 0, crop: 0, ..sound() }, "preprocess resize = 0: must be 1 to 4096"),
        (PreprocessSpec { resize: 5000, ..sound() }, "preprocess resize = 5000: must be 1 to 4096"),
        (PreprocessSpec { crop: 0, ..sound() }, "preprocess crop = 0: must be 1 to 256, the value of resize"),
        (
            PreprocessSpec { crop: 257, ..sound() },
            "preprocess crop = 257: must be 1 to 256, the value of resize",
        ),
        (
            PreprocessSpec { std: [1.0, 0.0, 1.0], ..sound() },
            "preprocess std = [1.0, 0.0, 1.0]: must be finite and above 0",
        ),
        (
            PreprocessSpec { std: [f32::NAN; 3], ..sound() },
            "preprocess std = [NaN, NaN, NaN]: must be finite and above 0",
        ),
        (
            PreprocessSpec { mean: [f32::INFINITY, 0.0, 0.0], ..sound() },
            "preprocess mean = [inf, 0.0, 0.0]: must be finite",
        ),
    ] {
        assert_eq!(spec.validate().unwrap_err().to_string(), message);
        assert!(CpuPreprocessor::new(spec).is_err());
    }
    assert!(PreprocessSpec { std: [tiny; 3], ..sound() }.validate().is_err());
    assert!(PreprocessSpec { crop: 256, ..sound() }.validate().is_ok());
}

#[test]
fn a_spec_is_read_from_toml_and_unknown_keys_are_refused() {
    let text = "resize = 256\ncrop = 224\nmean = [127.0, 127.0, 127.0]\nstd = [128.0, 128.0, 128.0]\n";
    let spec: PreprocessSpec = toml::from_str(text).unwrap();
    assert_eq!(spec, sound());
    assert_eq!(toml::from_str::<PreprocessSpec>(&toml::to_string(&spec).unwrap()).unwrap(), spec);
    let error = toml::from_str::<PreprocessSpec>(&format!("{text}filter = \"lanczos\"\n")).unwrap_err();
    assert!(error.to_string().contains("unknown field `filter`"), "{error}");
}
