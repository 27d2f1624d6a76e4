//! The default bundle on labelled photographs, which are not part of the project: WEIR_PHOTOS names their folder, and
//! WEIR_FP32_BUNDLE the same network in fp32. `make test` sets the latter.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use support::weir;

/// Predicted label by file name.
type Seen = HashMap<String, String>;

fn labels(photos: &Path) -> Seen {
    let table = std::fs::read_to_string(photos.join("labels.csv")).unwrap();
    let rows = table.lines().skip(1).map(|row| row.split_once(',').unwrap());
    rows.map(|(file, label)| (file.to_owned(), label.trim().to_owned())).collect()
}

fn predict(photos: &Path, bundle: &Path) -> Seen {
    let output = weir().args(["predict", "--json", "--bundle"]).arg(bundle).arg(photos).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let rows = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.map(|row| {
        let file = PathBuf::from(row["file"].as_str().unwrap());
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        (name, row["species"].as_str().unwrap().to_owned())
    })
    .collect()
}

#[test]
fn fish_are_named_right_and_int8_agrees_with_fp32() {
    let Some(photos) = std::env::var_os("WEIR_PHOTOS").map(PathBuf::from) else {
        println!("NOT RUN: accuracy, since WEIR_PHOTOS names no folder of labelled photos");
        return;
    };
    let labels = labels(&photos);
    let int8 = predict(&photos, &support::bundle());
    assert_eq!(int8.len(), labels.len(), "every labelled photo is predicted");
    let right = |fish: bool| {
        let these = labels.iter().filter(|(_, label)| (*label != "not_fish") == fish);
        these.map(|(file, label)| usize::from(int8[file] == *label)).collect::<Vec<_>>()
    };
    let (fish, others) = (right(true), right(false));
    let (found, rejected) = (fish.iter().sum::<usize>(), others.iter().sum::<usize>());
    println!(
        "int8: {found} of {} fish named right, {rejected} of {} others called not_fish",
        fish.len(),
        others.len()
    );
    assert!(found + 2 >= fish.len(), "only {found} of {} fish are named right", fish.len());
    assert!(rejected + 1 >= others.len(), "only {rejected} of {} others are called not_fish", others.len());

    let fp32 = std::env::var_os("WEIR_FP32_BUNDLE")
        .expect("WEIR_FP32_BUNDLE is not set; scripts/fp32-bundle makes it");
    let fp32 = predict(&photos, Path::new(&fp32));
    let agreed = int8.iter().filter(|(file, species)| fp32[*file] == **species).count();
    println!("int8 and fp32 agree on {agreed} of {}", int8.len());
    assert!(agreed + 2 >= int8.len(), "int8 and fp32 agree on only {agreed} of {}", int8.len());
}

/// Bounds on the difference of scores between baseline, which the reduced decoder reads at a quarter, and progressive, which
/// libjpeg-turbo reads: of photos that were enlarged to a camera's size, and of mosaics of them, which have more detail than a
/// camera's frames and get uncertain predictions.
const MAX_DIFFERENCE: [(&str, f64); 2] = [("enlarged", 0.03), ("mosaic", 0.15)];
/// The shorter side of a camera's frame.
const CAMERA: u32 = 1080;

/// A photo at a camera's size, enlarged or repeated.
fn at_cameras_size(photo: &image::RgbImage, kind: &str) -> image::RgbImage {
    let (width, height) = photo.dimensions();
    let times = CAMERA.div_ceil(width.min(height));
    match kind {
        "enlarged" => image::imageops::resize(
            photo,
            times * width,
            times * height,
            image::imageops::FilterType::CatmullRom,
        ),
        _ => image::RgbImage::from_fn(times * width, times * height, |x, y| {
            *photo.get_pixel(x % width, y % height)
        }),
    }
}

fn decoded(photo: &Path) -> image::RgbImage {
    let mut decoder = gpu_kernels::Decoder::new(gpu_kernels::DecodeLimits::default()).unwrap();
    let bytes = std::fs::read(photo).unwrap();
    let image = decoder.decode(&bytes, u32::MAX).unwrap();
    image::RgbImage::from_raw(image.width, image.height, image.pixels.to_vec()).unwrap()
}

fn jpeg(picture: &image::RgbImage, progressive: bool) -> Vec<u8> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let mut compressor = turbojpeg::Compressor::new().unwrap();
    compressor.set_subsamp(turbojpeg::Subsamp::Sub2x2).unwrap();
    compressor.set_quality(90).unwrap();
    compressor.set_progressive(progressive).unwrap();
    let format = turbojpeg::PixelFormat::RGB;
    let pixels = &picture.as_raw()[..];
    compressor.compress_to_vec(turbojpeg::Image { pixels, width, pitch: 3 * width, height, format }).unwrap()
}

/// Scores of all labels by file name.
fn scores(folder: &Path, bundle: &Path, labels: usize) -> HashMap<String, HashMap<String, f64>> {
    let labels = labels.to_string();
    let output = weir()
        .args(["predict", "--json", "-k", &labels, "--bundle"])
        .arg(bundle)
        .arg(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let rows = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.map(|row| {
        let file = PathBuf::from(row["file"].as_str().unwrap());
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let all = row["predictions"].as_array().unwrap().iter();
        let all = all.map(|one| (one["label"].as_str().unwrap().to_owned(), one["score"].as_f64().unwrap()));
        (name, all.collect())
    })
    .collect()
}

#[test]
fn a_photo_gets_the_same_scores_as_baseline_and_as_progressive() {
    let Some(photos) = std::env::var_os("WEIR_PHOTOS").map(PathBuf::from) else {
        println!(
            "NOT RUN: scores of baseline and progressive photos, since WEIR_PHOTOS names no folder of them"
        );
        return;
    };
    let bundle = std::env::var_os("WEIR_FP32_BUNDLE")
        .expect("WEIR_FP32_BUNDLE is not set; scripts/fp32-bundle makes it");
    let manifest = std::fs::read_to_string(Path::new(&bundle).join("bundle.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let count = manifest["labels"].as_array().unwrap().len();
    for (kind, most) in MAX_DIFFERENCE {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for file in labels(&photos).into_keys() {
            let photo = decoded(&photos.join(&file));
            let picture = at_cameras_size(&photo, kind);
            for (folder, progressive) in folders.iter().zip([false, true]) {
                std::fs::write(folder.path().join(&file), jpeg(&picture, progressive)).unwrap();
            }
        }
        let [baseline, progressive] = folders.map(|folder| scores(folder.path(), Path::new(&bundle), count));
        let (mut sum, mut worst) = (0.0, (0.0, String::new()));
        for (file, one) in &baseline {
            let apart = one.iter().map(|(label, score)| (score - progressive[file][label]).abs());
            let apart = apart.fold(0.0, f64::max);
            sum += apart;
            if apart > worst.0 {
                worst = (apart, file.clone());
            }
        }
        println!(
            "{kind}: {} photos; scores are apart by {:.4} at most, of {}; by {:.4} in the mean of each photo's most",
            baseline.len(),
            worst.0,
            worst.1,
            sum / baseline.len() as f64
        );
        assert!(baseline.len() >= 2 && worst.0 <= most, "{kind}: {worst:?}");
    }
}
