//! Manifests of bundles: refused with a reason, or within every limit that the engine and the store rely on.

use std::path::{Component, Path};

use gpu_kernels::CpuPreprocessor;
use inference::bundle::{Bundle, Manifest};

use crate::harness::{measured, temp_folder};

/// Bytes of memory per byte of the manifest, and per manifest.
const TIMES: u64 = 256;
const FIXED: u64 = 1 << 20;

/// Checks the property.
pub fn check(text: &[u8]) {
    let folder = temp_folder();
    let path = folder.path().join("bundle.toml");
    std::fs::write(&path, text).expect("a manifest on disk");
    let (read, cost) = measured(|| Manifest::read(folder.path()));
    let most = FIXED + TIMES * text.len() as u64;
    assert!(cost.bytes <= most, "{} bytes for a manifest of {}", cost.bytes, text.len());
    let manifest = match read {
        Ok(manifest) => manifest,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for (file, sha256) in manifest.files() {
        let inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
        assert!(
            inside && !file.is_empty() && !file.contains(['\\', '\0']),
            "{file:?} leads out of the folder"
        );
        assert!(sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit()), "{sha256:?}");
    }
    let mut labels = manifest.labels.clone();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), manifest.output.shape[1] as usize, "labels are told apart, one a score");
    let crop = manifest.preprocess.crop;
    assert_eq!(manifest.input.shape[1..], [3, crop, crop]);
    assert!(CpuPreprocessor::new(manifest.preprocess.clone()).is_ok(), "{:?}", manifest.preprocess);
    assert!(manifest.golden.iter().all(|golden| labels.contains(&golden.label)));

    // Written like the bundle of a plain ONNX model.
    std::fs::write(&path, toml::to_string(&manifest).expect("TOML of a manifest"))
        .expect("a manifest on disk");
    let again = Manifest::read(folder.path()).expect("what was written is read");
    assert_eq!(format!("{again:?}"), format!("{manifest:?}"));
    // None of its files exists.
    assert!(Bundle::open(folder.path()).is_err());
}
