//! The orientation is applied as if the decoded image had been turned first.

use gpu_kernels::{Image, Orientation};

use crate::draw::{Picture, noise, picture, window};

/// Turned by the `image` crate.
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
    let spec = gpu_kernels::PreprocessSpec { resize: 8, crop: 8, mean: [0.0; 3], std: [1.0; 3] };
    let mut preprocessor = gpu_kernels::CpuPreprocessor::new(spec).unwrap();
    let mut out = vec![0.0; 3 * 64];
    let drawn = picture(4, 4, noise);
    let whole = drawn.as_image();
    assert!(preprocessor.run(&whole, &mut out).is_ok());
    assert!(preprocessor.run(&Image { pixels: &whole.pixels[1..], ..whole }, &mut out).is_err());
    assert!(preprocessor.run(&Image { width: 0, ..whole }, &mut out).is_err());
    let error = preprocessor.run(&whole, &mut out[1..]).unwrap_err();
    assert_eq!(error.to_string(), "the output has 191 values; one image takes 192");
}
