//! Fuzz targets: each is a function that takes any bytes and panics where a property does not hold.
//!
//! | target | input | module |
//! |---|---|---|
//! | `decode_bmp`, `decode_gif`, `decode_jpeg`, `decode_png`, `decode_tiff`, `decode_webp` | an image | [`decode`] |
//! | `jpeg_scales` | a JPEG, or what one is drawn from | [`jpeg_scales`] |
//! | `multipart` | a Content-Type, a newline, a body | [`multipart`] |
//! | `predict_json` | the body of a request, or an image to be written as one | [`predict_json`] |
//! | `batch_body` | a Content-Type, a newline, the body of a batch | [`batch_body`] |
//! | `batch_message` | a message of the requests topic | [`batch_message`] |
//! | `bundle_manifest` | a `bundle.toml` | [`bundle_manifest`] |
//! | `outbox` | a segment, or steps that write several | [`outbox`] |
//!
//! The binaries in `fuzz_targets/` run them under libFuzzer (`scripts/fuzz`). Built without `cfg(fuzzing)`, as by
//! `cargo run`, they replay the files that are their arguments. `tests/seeds.rs` runs all of them over the seeds and a fixed
//! number of mutations.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a violated property is a panic here"
)]

pub mod batch_body;
pub mod batch_message;
pub mod bundle_manifest;
pub mod decode;
mod harness;
pub mod jpeg_scales;
pub mod multipart;
pub mod outbox;
pub mod predict_json;

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gpu_kernels::ImageFormat;

pub use harness::mutated;

/// A property that must hold for any bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of the binary and of the folder of seeds.
    pub name: &'static str,
    /// Panics where the property does not hold.
    pub check: fn(&[u8]),
}

/// All targets, by name.
pub const TARGETS: [Target; 13] = [
    Target { name: "batch_body", check: batch_body::check },
    Target { name: "batch_message", check: batch_message::check },
    Target { name: "bundle_manifest", check: bundle_manifest::check },
    Target { name: "decode_bmp", check: |bytes| decode::check(ImageFormat::Bmp, bytes) },
    Target { name: "decode_gif", check: |bytes| decode::check(ImageFormat::Gif, bytes) },
    Target { name: "decode_jpeg", check: |bytes| decode::check(ImageFormat::Jpeg, bytes) },
    Target { name: "decode_png", check: |bytes| decode::check(ImageFormat::Png, bytes) },
    Target { name: "decode_tiff", check: |bytes| decode::check(ImageFormat::Tiff, bytes) },
    Target { name: "decode_webp", check: |bytes| decode::check(ImageFormat::WebP, bytes) },
    Target { name: "jpeg_scales", check: jpeg_scales::check },
    Target { name: "multipart", check: multipart::check },
    Target { name: "outbox", check: outbox::check },
    Target { name: "predict_json", check: predict_json::check },
];

/// The target of that name.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn target(name: &str) -> Target {
    TARGETS.into_iter().find(|target| target.name == name).expect("a target of this name")
}

/// The folder with the seeds of a target.
#[must_use]
pub fn seeds(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name)
}

thread_local! {
    /// The last panic of this thread, for the report if it is not caught.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Replaces libFuzzer's panic hook, which aborts on every panic: one in an image decoder is caught and becomes the error of its
/// image, which is a documented result.
pub fn prepare() {
    panic::set_hook(Box::new(|info| {
        LAST_PANIC
            .with_borrow_mut(|last| *last = format!("{info}\n{}", std::backtrace::Backtrace::capture()));
    }));
}

/// Runs a target under libFuzzer, which treats a panic that leaves this function as a crash.
#[allow(clippy::print_stderr, reason = "libFuzzer reports on stderr")]
pub fn fuzz(target: Target, bytes: &[u8]) {
    if let Err(cause) = panic::catch_unwind(AssertUnwindSafe(|| (target.check)(bytes))) {
        LAST_PANIC.with_borrow(|last| eprintln!("{last}"));
        panic::resume_unwind(cause);
    }
}

/// Runs a target on the files that are the process's arguments: reproduces what the fuzzer found.
#[must_use]
#[allow(clippy::print_stderr, reason = "the report of a program for developers")]
pub fn replay(name: &str) -> ExitCode {
    let files: Vec<_> = std::env::args_os().skip(1).collect();
    if files.is_empty() {
        eprintln!(
            "Usage: {name} FILE...   runs the fuzz target on each file once; scripts/fuzz {name} fuzzes"
        );
        return ExitCode::from(2);
    }
    for file in files {
        match std::fs::read(&file) {
            Ok(bytes) => (target(name).check)(&bytes),
            Err(error) => {
                eprintln!("{}: {error}", Path::new(&file).display());
                return ExitCode::FAILURE;
            }
        }
        eprintln!("{}: the property holds", Path::new(&file).display());
    }
    ExitCode::SUCCESS
}

/// The entry point of the binary of a target.
#[macro_export]
macro_rules! entry {
    ($name:literal) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(init: $crate::prepare(), |bytes: &[u8]| {
            $crate::fuzz($crate::target($name), bytes);
        });

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::replay($name)
        }
    };
}
