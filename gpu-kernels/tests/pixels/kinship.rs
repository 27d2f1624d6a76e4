//! The own decoder and libjpeg-turbo on the labelled photos, each written as baseline and as progressive: how far the
//! pixels that a model sees are apart.

use std::path::PathBuf;

use turbojpeg::{Compressor, PixelFormat, Subsamp};

use crate::draw::{decoder, window};

/// Bounds on the difference of a channel of the window of 224 x 224, in levels of 0 to 255: the mean over all photos, over
/// one photo, and the worst value of any. libjpeg's reduced transforms give the means of neighbouring pixels, the own decoder the
/// lowest frequencies alone.
const MEAN: f32 = 1.0;
const MEAN_OF_A_PHOTO: f32 = 5.0;
const WORST: f32 = 40.0;

fn encode(pixels: &[u8], width: usize, height: usize, progressive: bool) -> Vec<u8> {
    let mut compressor = Compressor::new().unwrap();
    compressor.set_subsamp(Subsamp::Sub2x2).unwrap();
    compressor.set_quality(90).unwrap();
    compressor.set_progressive(progressive).unwrap();
    let image = turbojpeg::Image { pixels, width, pitch: 3 * width, height, format: PixelFormat::RGB };
    compressor.compress_to_vec(image).unwrap()
}

#[test]
fn a_photo_as_baseline_and_as_progressive_is_the_same_picture() {
    let Some(folder) = std::env::var_os("WEIR_PHOTOS").map(PathBuf::from) else {
        eprintln!("WEIR_PHOTOS is not set: no photo was compared");
        return;
    };
    let mut decoder = decoder();
    let (mut means, mut worst) = (Vec::new(), 0f32);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let image = decoder.decode(&bytes, u32::MAX).unwrap();
        let (width, height) = (image.width as usize, image.height as usize);
        let pixels = image.pixels.to_vec();
        let [baseline, progressive] = [false, true].map(|kind| encode(&pixels, width, height, kind));
        // A quarter and an eighth, where the own decoder reads the baseline file.
        for resize in [width.min(height) / 4, width.min(height) / 8] {
            let mut seen = |bytes: &[u8]| {
                let image = decoder.decode(bytes, resize as u32).unwrap();
                window(&image, 256, 224)
            };
            let (own, library) = (seen(&baseline), seen(&progressive));
            let off: Vec<f32> = own.iter().zip(&library).map(|(a, b)| (a - b).abs()).collect();
            means.push(off.iter().sum::<f32>() / off.len() as f32);
            worst = off.iter().fold(worst, |worst, &off| worst.max(off));
        }
    }
    let most = means.iter().copied().fold(0f32, f32::max);
    let mean = means.iter().sum::<f32>() / means.len() as f32;
    println!(
        "{} comparisons: mean {mean:.3}, most of a photo {most:.3}, worst value {worst:.1}",
        means.len()
    );
    assert!(mean <= MEAN, "the photos are off by {mean} levels on average");
    assert!(most <= MEAN_OF_A_PHOTO, "a photo is off by {most} levels on average");
    assert!(worst <= WORST, "a value is off by {worst} levels");
}
