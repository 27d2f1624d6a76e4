//! The kernel's headers, compiled by `cc` with its sanitizers and run on batches; and the definition of preprocessing (rotate,
//! resize, crop) that they are compared with, step by step in double precision.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use gpu_kernels::Orientation;
use gpu_kernels::preprocess::{Element, ImageDescriptor, TensorDescriptor};

use crate::draw::Picture;

/// An image's descriptor, with addresses still unset, and its planes.
pub(crate) struct Stored {
    pub(crate) descriptor: ImageDescriptor,
    pub(crate) planes: [Vec<u8>; 3],
}

fn compile() -> PathBuf {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernel-host-{}", std::process::id()));
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let compile = |extra: &[&str]| {
        let mut command = Command::new(&cc);
        command.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program);
        command.args(extra).arg(kernels.join("host.c")).output().unwrap_or_else(|e| panic!("{cc}: {e}"))
    };
    let sanitized = compile(&["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    if !sanitized.status.success() {
        eprintln!("NOT CHECKED: reads out of bounds, since {cc} has no sanitizers here");
        let plain = compile(&[]);
        assert!(plain.status.success(), "{cc}: {}", String::from_utf8_lossy(&plain.stderr));
    }
    program
}

/// Runs a batch; returns the tensor's bytes.
pub(crate) fn run(tensor: TensorDescriptor, images: &[Stored], bytes: usize) -> Vec<u8> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(compile);
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut out = Vec::with_capacity(bytes);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that fails stops reading; its exit status is checked.
            let _ = (|| {
                stdin.write_all(&u32::try_from(images.len()).unwrap().to_ne_bytes())?;
                stdin.write_all(bytemuck::bytes_of(&tensor))?;
                for image in images {
                    stdin.write_all(bytemuck::bytes_of(&image.descriptor))?;
                    for plane in &image.planes {
                        stdin.write_all(&(plane.len() as u64).to_ne_bytes())?;
                    }
                    image.planes.iter().try_for_each(|plane| stdin.write_all(plane))?;
                }
                stdin.flush()
            })();
        });
        stdout.read_to_end(&mut out).unwrap();
    });
    assert!(child.wait().unwrap().success(), "the kernel's arithmetic failed on the host");
    assert_eq!(out.len(), bytes);
    out
}

/// The values of a tensor.
pub(crate) fn values(element: Element, bytes: &[u8]) -> Vec<f64> {
    match element {
        Element::F32 => bytes.as_chunks().0.iter().map(|&b| f64::from(f32::from_ne_bytes(b))).collect(),
        Element::F16 => bytes.as_chunks().0.iter().map(|&b| half(u16::from_ne_bytes(b))).collect(),
    }
}

/// IEEE 754 half precision.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    sign * match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + mantissa) * 2f64.powi(exponent - 25),
    }
}

/// The pixel at (x, y) of the upright picture, by EXIF's definition of the eight orientations.
fn upright(picture: &Picture, x: u32, y: u32, channel: usize) -> f64 {
    let (w, h) = (picture.width, picture.height);
    let (column, row) = match picture.orientation {
        Orientation::Upright => (x, y),
        Orientation::FlipHorizontal => (w - 1 - x, y),
        Orientation::Rotate180 => (w - 1 - x, h - 1 - y),
        Orientation::FlipVertical => (x, h - 1 - y),
        Orientation::Transpose => (y, x),
        Orientation::Rotate90 => (y, h - 1 - x),
        Orientation::Transverse => (w - 1 - y, h - 1 - x),
        Orientation::Rotate270 => (w - 1 - y, x),
    };
    f64::from(picture.pixels[3 * (row as usize * w as usize + column as usize) + channel])
}

/// First source pixel and weights of each position of the window along an axis.
fn weights(size: u32, shorter: u32, resize: u32, crop: u32) -> Vec<(u32, Vec<f64>)> {
    let (wide, short) = (u64::from(size) * u64::from(resize), u64::from(shorter));
    let resized = (2 * wide + short) / (2 * short);
    let begin = (resized - u64::from(crop)) / 2;
    let factor = f64::from(size) / resized as f64;
    let support = factor.max(1.0);
    (begin..begin + u64::from(crop))
        .map(|position| {
            let centre = (position as f64 + 0.5) * factor;
            let first = (centre - support + 0.5).max(0.0) as u32;
            let end = ((centre + support + 0.5) as u32).min(size);
            let weigh = |at: u32| (1.0 - ((f64::from(at) + 0.5 - centre) / support).abs()).max(0.0);
            let raw: Vec<f64> = (first..end).map(weigh).collect();
            let sum: f64 = raw.iter().sum();
            (first, raw.into_iter().map(|weight| weight / sum).collect())
        })
        .collect()
}

/// Levels of the window in planes of red, green and blue, without rounding.
pub(crate) fn levels(picture: &Picture, resize: u32, crop: u32) -> Vec<f64> {
    let (mut width, mut height) = (picture.width, picture.height);
    if picture.orientation.swaps_sides() {
        (width, height) = (height, width);
    }
    let shorter = width.min(height);
    let (across, down) = (weights(width, shorter, resize, crop), weights(height, shorter, resize, crop));
    let first_row = down[0].0;
    let end_row = down.last().map(|(first, weights)| first + weights.len() as u32).unwrap();
    let mut out = Vec::with_capacity(3 * crop as usize * crop as usize);
    for channel in 0..3 {
        let mut rows = Vec::with_capacity((end_row - first_row) as usize * crop as usize);
        for y in first_row..end_row {
            rows.extend(across.iter().map(|(first, weights)| {
                let at = |(x, weight): (u32, &f64)| weight * upright(picture, x, y, channel);
                (*first..).zip(weights).map(at).sum::<f64>()
            }));
        }
        for (first, weights) in &down {
            for column in 0..crop as usize {
                let above = (*first - first_row) as usize;
                let at = |(y, weight): (usize, &f64)| weight * rows[y * crop as usize + column];
                out.push((above..).zip(weights).map(at).sum());
            }
        }
    }
    out
}
