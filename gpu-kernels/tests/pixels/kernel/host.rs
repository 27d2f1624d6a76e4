//! The kernel's headers compiled by `cc` with its sanitizers, and batches run through them.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use gpu_kernels::preprocess::{Element, ImageDescriptor, TensorDescriptor};

/// An image's descriptor, its addresses not yet known, and its planes.
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

/// Runs a batch; the tensor's bytes.
pub(crate) fn run(tensor: TensorDescriptor, images: &[Stored], bytes: usize) -> Vec<u8> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(compile);
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut out = Vec::with_capacity(bytes);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that fails reads no further; its exit status says so.
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
