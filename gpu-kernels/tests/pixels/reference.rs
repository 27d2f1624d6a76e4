//! Preprocessing against Pillow: the numbers in reference.txt, written by make_reference.py beside it.

use gpu_kernels::Orientation;

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
    // Pillow rounds between the passes of the filter; the CPU does so too, in another order. Most pixels agree all the same.
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
