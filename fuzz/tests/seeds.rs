//! Every fuzz target over its seeds and over a fixed number of mutations of them, the same in each run.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Mutex;

use weir_fuzz::{TARGETS, mutated, seeds, target};

/// One target at a time, since memory is measured for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn read_all(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// A failure leaves the input behind, for the target's binary to replay.
fn holds(name: &str, what: &str, bytes: &[u8]) {
    let target = target(name);
    if let Err(cause) = catch_unwind(AssertUnwindSafe(|| (target.check)(bytes))) {
        let file = std::env::temp_dir().join(format!("weir-fuzz-{name}"));
        std::fs::write(&file, bytes).unwrap();
        eprintln!(
            "{name} fails on {what}. To repeat: cargo run -p weir-fuzz --bin {name} {}",
            file.display()
        );
        resume_unwind(cause);
    }
}

fn run(name: &str, mutations: u64) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let files = read_all(&seeds(name));
    assert!(!files.is_empty(), "there are no seeds");
    for (file, bytes) in &files {
        holds(name, file, bytes);
    }
    let files: Vec<_> = files.into_iter().map(|(_, bytes)| bytes).collect();
    for number in 0..mutations {
        let bytes = mutated(&files, &mut fastrand::Rng::with_seed(number));
        holds(name, &format!("mutation {number}"), &bytes);
    }
}

macro_rules! targets {
    ($($name:ident: $mutations:literal;)*) => {
        $(#[test] fn $name() { run(stringify!($name), $mutations); })*

        #[test]
        fn every_target_is_run_and_has_few_small_seeds() {
            assert_eq!([$(stringify!($name)),*], TARGETS.map(|target| target.name));
            let bytes: usize =
                TARGETS.iter().flat_map(|target| read_all(&seeds(target.name))).map(|(_, bytes)| bytes.len()).sum();
            assert!(bytes < 1 << 20, "{bytes} bytes of seeds");
        }
    };
}

targets! {
    batch_body: 2000;
    batch_message: 4000;
    bundle_manifest: 1500;
    decode_bmp: 1000;
    decode_gif: 1000;
    decode_jpeg: 1000;
    decode_png: 1000;
    decode_tiff: 1000;
    decode_webp: 1000;
    jpeg_scales: 500;
    multipart: 4000;
    outbox: 1500;
    predict_json: 4000;
}
