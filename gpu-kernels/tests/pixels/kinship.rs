//! Our decoder and libjpeg-turbo on the labelled photos, each encoded as baseline and as progressive, compared with the means
//! of the pixels at full size; and that every labelled photo is decoded.

use std::path::PathBuf;

use turbojpeg::{Compressor, PixelFormat, Subsamp};

use crate::draw::{decoder, window};

/// Bounds on the difference of a channel of the window of 224 x 224, in levels of 0 to 255: the mean over all photos, over one
/// photo, and the worst value of any. The difference is the contribution of the frequencies that our decoder does not read to
/// the means of neighbours. The photos are small, so they have more of these than a camera's frames.
const BOUNDS: Apart = Apart { mean: 0.8, of_a_photo: 4.8, worst: 35.0 };

#[derive(Clone, Copy, Debug, Default)]
struct Apart {
    mean: f32,
    of_a_photo: f32,
    worst: f32,
}

impl Apart {
    fn of(pairs: &[(Vec<f32>, Vec<f32>)]) -> Self {
        let mut all = Self::default();
        for (one, other) in pairs {
            let off: Vec<f32> = one.iter().zip(other).map(|(a, b)| (a - b).abs()).collect();
            let mean = off.iter().sum::<f32>() / off.len() as f32;
            all.mean += mean / pairs.len() as f32;
            all.of_a_photo = all.of_a_photo.max(mean);
            all.worst = off.iter().fold(all.worst, |worst, &off| worst.max(off));
        }
        all
    }
}

fn encode(pixels: &[u8], width: usize, height: usize, progressive: bool) -> Vec<u8> {
    let mut compressor = Compressor::new().unwrap();
    compressor.set_subsamp(Subsamp::Sub2x2).unwrap();
    compressor.set_quality(90).unwrap();
    compressor.set_progressive(progressive).unwrap();
    let image = turbojpeg::Image { pixels, width, pitch: 3 * width, height, format: PixelFormat::RGB };
    compressor.compress_to_vec(image).unwrap()
}

/// Means of squares of `by` pixels per side.
fn means(pixels: &[u8], width: usize, by: usize) -> Vec<f32> {
    let height = pixels.len() / (3 * width);
    let mut out = Vec::with_capacity(pixels.len() / by / by);
    for y in 0..height / by {
        for x in 0..width / by {
            for channel in 0..3 {
                let square = (0..by * by).map(|at| (y * by + at / by, x * by + at % by));
                let sum: u32 = square.map(|(y, x)| u32::from(pixels[3 * (y * width + x) + channel])).sum();
                out.push(sum as f32 / (by * by) as f32);
            }
        }
    }
    out
}

#[test]
fn a_photo_as_baseline_and_as_progressive_is_the_same_picture() {
    let Some(folder) = std::env::var_os("WEIR_PHOTOS").map(PathBuf::from) else {
        println!("NOT RUN: baseline and progressive photos, since WEIR_PHOTOS names no folder of them");
        return;
    };
    let mut decoder = decoder();
    let (mut seen, mut own, mut library) = (Vec::new(), Vec::new(), Vec::new());
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let image = std::fs::read(&path).unwrap();
        let image = decoder.decode(&image, u32::MAX).unwrap();
        // Whole MCUs, so that each pixel of a reduced picture stands for the same number of pixels.
        let (width, height) = (image.width as usize / 16 * 16, image.height as usize / 16 * 16);
        let rows = image.pixels.chunks_exact(3 * image.width as usize).take(height);
        let pixels: Vec<u8> = rows.flat_map(|row| &row[..3 * width]).copied().collect();
        let [baseline, progressive] = [false, true].map(|kind| encode(&pixels, width, height, kind));
        let full = decoder.decode(&baseline, u32::MAX).unwrap().pixels.to_vec();
        // A quarter and an eighth, at which our decoder decodes the baseline file.
        for by in [4, 8] {
            let mut decode = |bytes: &[u8]| {
                let image = decoder.decode(bytes, (width.min(height) / by) as u32).unwrap();
                assert_eq!((image.width as usize, image.height as usize), (width / by, height / by));
                (
                    image.pixels.iter().map(|&level| f32::from(level)).collect::<Vec<_>>(),
                    window(&image, 256, 224),
                )
            };
            let (baseline, progressive) = (decode(&baseline), decode(&progressive));
            let means = means(&full, width, by);
            own.push((baseline.0, means.clone()));
            library.push((progressive.0, means));
            seen.push((baseline.1, progressive.1));
        }
    }
    assert!(seen.len() >= 2, "no photos in {}", folder.display());
    let (seen, own, library) = (Apart::of(&seen), Apart::of(&own), Apart::of(&library));
    println!("baseline and progressive, as the model sees them: {seen:?}");
    println!("own decoder and the means of all pixels: {own:?}");
    println!("libjpeg-turbo and the means of all pixels: {library:?}");
    assert!(seen.mean <= BOUNDS.mean, "the photos are off by {seen:?}");
    assert!(seen.of_a_photo <= BOUNDS.of_a_photo, "a photo is off by {seen:?}");
    assert!(seen.worst <= BOUNDS.worst, "a value is off by {seen:?}");
    // libjpeg-turbo is exact; our decoder is as close to it as to the means.
    assert!(library.mean <= own.mean, "{library:?} {own:?}");
}

#[test]
fn every_labelled_photo_decodes() {
    let Some(folder) = std::env::var_os("WEIR_PHOTOS").map(PathBuf::from) else {
        eprintln!("WEIR_PHOTOS is not set: no photo was decoded");
        return;
    };
    let mut decoder = decoder();
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let image = decoder.decode(&bytes, 256).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(image.width.min(image.height) >= image.original_width.min(image.original_height).min(256));
        let values = window(&image, 256, 224);
        let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        assert!(high - low > 50.0, "{}: hardly any contrast", path.display());
        count += 1;
    }
    assert_eq!(count, 40);
}
