//! For tests: small bundles and models.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::hex;

/// A model or picture in `testdata/models`.
pub fn made(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models").join(file)
}

/// The hex digest of a file.
pub fn sha256_of(path: &Path) -> String {
    hex(&Sha256::digest(fs::read(path).unwrap()))
}

/// Writes a bundle of the model that classifies the prevailing colour, with one golden case.
pub fn write_bundle(dir: &Path, model: &str) {
    fs::create_dir_all(dir.join("golden")).unwrap();
    fs::copy(made(model), dir.join("model.onnx")).unwrap();
    fs::copy(made("red.png"), dir.join("golden/red.png")).unwrap();
    fs::write(dir.join("labels.txt"), "red\ngreen\nblue\n").unwrap();
    let (model, golden) = (sha256_of(&dir.join("model.onnx")), sha256_of(&made("red.png")));
    let text = format!(
        r#"format = 1
name = "colours"
version = "1"
labels = ["red", "green", "blue"]
[input]
name = "image"
shape = [0, 3, 8, 8]
[output]
name = "scores"
shape = [0, 3]
[preprocess]
resize = 8
crop = 8
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
[[variant]]
file = "model.onnx"
precision = "fp32"
input_type = "f32"
devices = ["cpu"]
sha256 = "{model}"
[[golden]]
file = "golden/red.png"
sha256 = "{golden}"
label = "red"
min_score = 0.9
"#
    );
    fs::write(dir.join("bundle.toml"), text).unwrap();
}

/// Replaces the first `from` in a text file by `to`.
pub fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has no {from:?}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}
