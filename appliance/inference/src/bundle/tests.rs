//! Bundles that are whole, and every way in which one is not.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Bundle, BundleError, DeviceTag, Precision};

pub(crate) fn default_bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fish/1")
}

/// A copy of the default bundle that a test may damage.
fn copy() -> TempDir {
    let target = tempfile::tempdir().unwrap();
    copy_into(&default_bundle(), target.path());
    target
}

fn copy_into(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_into(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn edit(dir: &TempDir, file: &str, change: impl FnOnce(String) -> String) {
    let path = dir.path().join(file);
    std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
}

fn refusal(dir: &TempDir) -> String {
    Bundle::open(dir.path()).unwrap_err().to_string()
}

#[test]
fn the_default_bundle_is_whole() {
    let bundle = Bundle::open(&default_bundle()).unwrap();
    assert_eq!(bundle.manifest().name, "fish");
    assert_eq!(bundle.manifest().labels.len(), 17);
    assert_eq!(bundle.manifest().labels[16], "not_fish");
    assert!(!bundle.golden_cases().unwrap().is_empty());
    assert_eq!(bundle.variant(DeviceTag::Cpu, None).unwrap().precision, Precision::Int8);
    assert_eq!(bundle.variant(DeviceTag::Cuda, None).unwrap().precision, Precision::Fp16);
}

#[test]
fn a_precision_that_is_not_there_names_what_is() {
    let bundle = Bundle::open(&default_bundle()).unwrap();
    let error = bundle.variant(DeviceTag::Cpu, Some(Precision::Fp32)).unwrap_err();
    assert!(matches!(error, BundleError::NoVariant { .. }));
    assert!(error.to_string().contains("cpu in fp32") && error.to_string().contains("int8"), "{error}");
}

#[test]
fn a_changed_model_is_noticed() {
    let dir = copy();
    let path = dir.path().join("model.int8.onnx");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Bundle::open(dir.path()).unwrap_err();
    assert!(matches!(&error, BundleError::Digest { file, .. } if file == "model.int8.onnx"), "{error}");
}

#[test]
fn a_missing_variant_is_named() {
    let dir = copy();
    std::fs::remove_file(dir.path().join("model.fp16.onnx")).unwrap();
    let error = Bundle::open(dir.path()).unwrap_err();
    assert!(matches!(&error, BundleError::Read { file, .. } if file == "model.fp16.onnx"), "{error}");
}

#[test]
fn a_missing_manifest_or_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refusal(&dir).contains("bundle.toml can't be read"));
    let error = Bundle::open(Path::new("/nowhere/at/all")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all"), "{error}");
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    let dir = copy();
    edit(&dir, "bundle.toml", |text| text.replace("\"puffer\", ", "").replace("\"puffer\",", ""));
    assert!(refusal(&dir).contains("16 labels"), "{}", refusal(&dir));
    let dir = copy();
    edit(&dir, "labels.txt", |text| text.replace("puffer", "pufferfish"));
    assert!(refusal(&dir).contains("labels.txt"), "{}", refusal(&dir));
    let dir = copy();
    edit(&dir, "bundle.toml", |text| text.replacen("\"tench\"", "\"goldfish\"", 1));
    assert!(refusal(&dir).contains("twice"), "{}", refusal(&dir));
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    for (from, to, part) in [
        ("format = 1", "format = 2", "format = 2"),
        ("crop = 224", "crop = 225", "crop = 225"),
        ("crop = 224", "crop = 300", "crop"),
        ("name = \"fish\"", "name = \"fish/../..\"", "fish/../.."),
        ("file = \"model.int8.onnx\"", "file = \"../model.int8.onnx\"", "leads out"),
        ("file = \"model.int8.onnx\"", "file = \"/etc/passwd\"", "leads out"),
        ("precision = \"int8\"", "precision = \"int4\"", "int4"),
        ("format = 1", "format = 1\nsurprise = true", "surprise"),
        ("format = 1", "format = ", "bundle.toml"),
    ] {
        let dir = copy();
        edit(&dir, "bundle.toml", |text| {
            assert!(text.contains(from), "the manifest has no {from:?}");
            text.replacen(from, to, 1)
        });
        assert!(refusal(&dir).contains(part), "{part:?} is missing in: {}", refusal(&dir));
    }
}
