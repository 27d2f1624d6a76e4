//! The preprocess kernel against the definition: every value of the tensor of images of many sizes, orientations and layouts, and
//! the same under NVIDIA's compute-sanitizer.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fastrand::Rng;
use gpu_kernels::cuda::DevicePool;
use gpu_kernels::preprocess::Element;
use gpu_kernels::preprocess::cuda::{BatchSettings, Batches, Uploader};
use gpu_kernels::{DecodeLimits, Decoder, Orientation, PreprocessSpec};

use super::definition::Rgb;
use super::pictures::{Kind, Picture};
use super::report::Sheet;
use super::setup::Setup;
use crate::bench::Target;
use crate::frames;

/// Images of a batch. The tensor has room for one more, which must not be written.
const BATCH: usize = 8;
/// A byte that makes NaN in both element types.
const POISON: u8 = 0xFF;
/// Tolerance for rounding: half precision, and sums in single precision.
const ROUNDING: f64 = 0.1;
const SANITIZER: &str = "compute-sanitizer";
/// Its exit code for findings, which the rig does not use.
const FOUND: i32 = 86;
/// Timeout of one of its tools.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Remaining seconds that are required to start a tool.
const MIN_SECONDS: f64 = 30.0;

const SIZES: [(u32, u32); 14] = [
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 5),
    (31, 33),
    (223, 224),
    (257, 255),
    (641, 479),
    (7, 2500),
    (2500, 9),
    (1, 3000),
    (1919, 1081),
    (1920, 1080),
    (3840, 2160),
];
const FEW_SIZES: [(u32, u32); 6] = [(1, 1), (3, 5), (31, 33), (257, 255), (9, 600), (641, 479)];
const KINDS: [Kind; 4] = [Kind::Rgb, Kind::PLANAR_420, Kind::Planar(0, 0), Kind::Grey];
/// Number of random sizes in addition to those above.
const RANDOM: usize = 24;

/// Different values per channel, so that swapped channels are detected.
fn spec() -> PreprocessSpec {
    PreprocessSpec { resize: 256, crop: 224, mean: [127.0, 120.0, 110.0], std: [128.0, 60.0, 255.0] }
}

/// How far the kernel is from the definition, in levels of 0 to 255.
#[derive(Default)]
struct Distance {
    most: f64,
    at: String,
    images: usize,
}

pub(super) fn run(setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
    let pictures = drawn(setup.plan.few_images);
    for element in [Element::F32, Element::F16] {
        for kind in KINDS {
            let of_kind: Vec<&Picture> = pictures.iter().filter(|picture| picture.kind == kind).collect();
            if !sheet.has_time(&format!("{}, {element:?}", kind.name()), 3.0) {
                continue;
            }
            let distance = compare(setup, element, &of_kind)?;
            hold(sheet, kind.name(), kind == Kind::Rgb, element, &distance);
        }
    }
    let Some(folder) = &setup.args.photos else {
        sheet.info("photos", "no folder of photos was given (--photos)");
        return Ok(());
    };
    let photos = photos(folder, setup.plan.photos)?;
    let photos: Vec<&Picture> = photos.iter().collect();
    hold(sheet, "photos", true, Element::F16, &compare(setup, Element::F16, &photos)?);
    Ok(())
}

fn hold(sheet: &Sheet, what: &str, is_rgb: bool, element: Element, distance: &Distance) {
    // The RGB of planes is rounded; a level between two may be rounded to either.
    let most = if is_rgb { 1.0 } else { 1.0 + ROUNDING };
    sheet.hold(
        format!("{what}, {element:?}: largest difference from the definition, {} images", distance.images),
        distance.most,
        "levels of 255",
        Target::AtMost(most),
        &distance.at,
    );
}

fn drawn(few: bool) -> Vec<Picture> {
    let mut rng = Rng::with_seed(0x57e1);
    let mut sizes = if few { FEW_SIZES.to_vec() } else { SIZES.to_vec() };
    let (random, largest) = if few { (2, 300) } else { (RANDOM, 700) };
    sizes.extend((0..random).map(|_| (rng.u32(1..largest), rng.u32(1..largest))));
    let mut pictures = Vec::new();
    for (at, &size) in sizes.iter().enumerate() {
        // All orientations for small images.
        let every = size == (31, 33) || size == (641, 479);
        for (number, kind) in KINDS.into_iter().enumerate() {
            let orientations =
                if every { &Orientation::ALL[..] } else { &Orientation::ALL[(at + number) % 8..][..1] };
            pictures.extend(orientations.iter().map(|&turned| Picture::random(kind, size, turned, &mut rng)));
        }
    }
    pictures
}

fn photos(folder: &Path, most: usize) -> anyhow::Result<Vec<Picture>> {
    let mut decoder = Decoder::new(DecodeLimits::default())?;
    let photos = frames::read_dir(folder)?;
    let decoded = photos.into_iter().take(most).map(|photo| {
        let image = decoder.decode(&photo.bytes, spec().resize).with_context(|| photo.name.clone())?;
        Ok(Picture::decoded(photo.name, &image))
    });
    decoded.collect()
}

fn compare(setup: &Setup, element: Element, pictures: &[&Picture]) -> anyhow::Result<Distance> {
    let expected = expected(pictures, setup.cores());
    let device = setup.device()?;
    let settings = BatchSettings {
        spec: spec(),
        element,
        max_batch: BATCH + 1,
        score_bytes: 4,
        slots: 1,
        image_bytes: 1 << 30,
    };
    let mut batches = Batches::new(&device, device.stream()?, settings)?;
    // Memory is released only after the batch, so the pool has room for the largest image.
    let mut uploader = Uploader::new(&device, DevicePool::new(&device, 1 << 30))?;
    let mut distance = Distance { images: pictures.len(), ..Distance::default() };
    for (pictures, expected) in pictures.chunks(BATCH).zip(expected.chunks(BATCH)) {
        let upload = |p: &&Picture| uploader.upload(&p.bytes, p.layout, p.size, p.orientation);
        let images: Vec<_> = pictures.iter().map(upload).collect::<Result<_, _>>()?;
        batches.fill_tensor(0, POISON)?;
        batches.preprocess(0, images)?;
        let tensor = batches.read_tensor(0, BATCH + 1)?;
        drop(batches.give_back(0)?);
        let image_bytes = spec().output_len() * element.bytes();
        let (written, rest) = tensor.split_at(pictures.len() * image_bytes);
        ensure!(rest.iter().all(|&byte| byte == POISON), "the kernel wrote behind the batch's images");
        for ((picture, bytes), expected) in
            pictures.iter().zip(written.chunks_exact(image_bytes)).zip(expected)
        {
            let most = furthest(element, bytes, expected).with_context(|| picture.name.clone())?;
            if most > distance.most {
                distance.most = most;
                distance.at = format!("most at {}", picture.name);
            }
        }
    }
    Ok(distance)
}

/// The expected values of each picture, on all cores.
fn expected(pictures: &[&Picture], threads: usize) -> Vec<Vec<f64>> {
    let (next, spec) = (AtomicUsize::new(0), spec());
    let work = || {
        let mut done = Vec::new();
        while let Some((at, picture)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            pictures.get(at).map(|picture| (at, picture))
        } {
            let ((width, height), orientation) = (picture.size, picture.orientation);
            let rgb = Rgb { pixels: &picture.rgb, width, height, orientation };
            done.push((at, rgb.levels(spec.resize, spec.crop)));
        }
        done
    };
    let mut done: Vec<(usize, Vec<f64>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, levels)| levels).collect()
}

/// The largest difference of an image's values from the expected levels.
fn furthest(element: Element, bytes: &[u8], expected: &[f64]) -> anyhow::Result<f64> {
    let spec = spec();
    let values: Vec<f64> = match element {
        Element::F32 => bytes.as_chunks().0.iter().map(|&b| f64::from(f32::from_ne_bytes(b))).collect(),
        Element::F16 => bytes.as_chunks().0.iter().map(|&b| half::f16::from_ne_bytes(b).to_f64()).collect(),
    };
    ensure!(values.len() == expected.len(), "{} values for {}", values.len(), expected.len());
    let unwritten = values.iter().filter(|value| value.is_nan()).count();
    ensure!(unwritten == 0, "{unwritten} values were not written");
    let plane = expected.len() / 3;
    let levels = values.iter().enumerate().map(|(at, value)| {
        let channel = at / plane;
        value * f64::from(spec.std[channel]) + f64::from(spec.mean[channel])
    });
    Ok(levels.zip(expected).map(|(level, expected)| (level - expected).abs()).fold(0.0, f64::max))
}

/// The kernel section under NVIDIA's compute-sanitizer, if it is installed: out-of-bounds accesses and races.
pub(super) fn sanitize(setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
    let Some(program) = find_sanitizer(&setup.args.folders) else {
        sheet.info(SANITIZER, "there is none on PATH or in a folder that was given");
        return Ok(());
    };
    for tool in ["memcheck", "racecheck"] {
        let what = format!("kernel under {tool}");
        if sheet.has_time(&what, if setup.simulated { 0.0 } else { MIN_SECONDS }) {
            sheet.attempt(&what, || run_tool(setup, sheet, &program, tool, &what));
        }
    }
    Ok(())
}

fn find_sanitizer(folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let given = folders.iter().flat_map(|folder| [folder.clone(), folder.join("bin")]);
    given.chain(std::env::split_paths(&path)).map(|folder| folder.join(SANITIZER)).find(|file| file.is_file())
}

fn run_tool(setup: &Setup, sheet: &Sheet, program: &PathBuf, tool: &str, what: &str) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let output = std::fs::File::create(&log)?;
    let mut command = Command::new(program);
    command.args(["--tool", tool, "--error-exitcode", &FOUND.to_string()]);
    command.arg(std::env::current_exe()?).args(["gpu", "--few", "--only", "kernel"]);
    command.args(["--gpu", &setup.gpu.number.to_string()]);
    for folder in &setup.args.folders {
        command.arg("--folder").arg(folder);
    }
    command.arg("--out").arg(dir.path().join("gpu.json")).env_remove("WEIR_PHOTOS");
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let (began, longest) = (Instant::now(), TIMEOUT.min(sheet.left()));
    let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if began.elapsed() > longest => {
                child.kill()?;
                child.wait()?;
                anyhow::bail!("it had not ended after {longest:?}");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    let summary = text.lines().rev().find(|line| line.contains("SUMMARY")).unwrap_or_default().to_owned();
    let end: Vec<&str> = text.lines().rev().take(4).collect();
    let note = match (status.success(), summary.is_empty()) {
        (true, _) | (_, false) => summary,
        _ => end.into_iter().rev().collect::<Vec<_>>().join(" / "),
    };
    if !status.success() && status.code() != Some(FOUND) {
        // It could not be run, which is not a fault of the kernel.
        anyhow::bail!("it ended with {status}: {note}");
    }
    let found = status.code().map_or(f64::NAN, f64::from);
    sheet.hold(format!("{what}: exit code"), found, "", Target::AtMost(0.0), &note);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_off_or_missing_is_seen() {
        let spec = spec();
        let expected: Vec<f64> = (0..spec.output_len()).map(|at| (at % 256) as f64).collect();
        let plane = expected.len() / 3;
        let value = |at: usize, level: f64| {
            ((level - f64::from(spec.mean[at / plane])) / f64::from(spec.std[at / plane])) as f32
        };
        let mut values: Vec<f32> = expected.iter().enumerate().map(|(at, &level)| value(at, level)).collect();
        let distance = |values: &[f32]| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            furthest(Element::F32, &bytes, &expected)
        };
        assert!(distance(&values).unwrap() < 0.001);
        values[plane + 7] = value(plane + 7, expected[plane + 7] + 3.0);
        assert!((distance(&values).unwrap() - 3.0).abs() < 0.001);
        values[9] = f32::from_ne_bytes([POISON; 4]);
        assert!(distance(&values).unwrap_err().to_string().contains("1 values were not written"));
        assert!(half::f16::from_ne_bytes([POISON; 2]).is_nan());
    }
}
