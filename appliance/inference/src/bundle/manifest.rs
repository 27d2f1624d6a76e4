//! `bundle.toml`, format 1: the manifest of a bundle, and the checks that need no other file.

use std::collections::BTreeMap;
use std::path::Path;

use gpu_kernels::PreprocessSpec;
use serde::{Deserialize, Serialize};

use super::BundleError;

/// The only manifest format that this version reads.
const FORMAT: u32 = 1;

/// The manifest as written.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Manifest format; 1.
    pub format: u32,
    /// Model name, as in `?model=`.
    pub name: String,
    /// Model version.
    pub version: String,
    /// A description for people.
    #[serde(default)]
    pub description: String,
    /// SPDX expression of the weights' licence.
    #[serde(default)]
    pub license: String,
    /// Labels in output order.
    pub labels: Vec<String>,
    /// The graph's input.
    pub input: Input,
    /// The graph's output.
    pub output: Output,
    /// Preprocessing from decoded pixels to the input tensor.
    pub preprocess: PreprocessSpec,
    /// One entry per model file.
    #[serde(rename = "variant")]
    pub variants: Vec<Variant>,
    /// Pictures with known results, computed before the bundle serves.
    #[serde(rename = "golden", default)]
    pub golden: Vec<Golden>,
    /// Expected share of each label among the top labels of the images that the model was made for, 0 to 1: the reference for
    /// drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<BTreeMap<String, f64>>,
}

/// The graph's one input.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Name in the graph.
    pub name: String,
    /// N, C, H, W; N is 0 for any batch size.
    pub shape: [u32; 4],
}

/// The graph's one output.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Name in the graph.
    pub name: String,
    /// N, labels; N is 0 for any batch size.
    pub shape: [u32; 2],
    /// What the values are.
    #[serde(default, skip_serializing_if = "OutputKind::is_default")]
    pub kind: OutputKind,
}

/// What the values of a graph's output are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// Probabilities: each between 0 and 1, all of an image adding up to 1.
    #[default]
    Probabilities,
    /// Logits: any finite values, to which softmax is applied.
    Logits,
}

impl OutputKind {
    /// Whether this is the default, which a manifest may omit.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A model file and where it runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// File name, relative to the bundle's folder.
    pub file: String,
    /// Arithmetic of the weights.
    pub precision: Precision,
    /// Element type of the graph's input.
    pub input_type: InputType,
    /// Devices that this variant is meant for.
    pub devices: Vec<DeviceTag>,
    /// Hex SHA-256 of the file.
    pub sha256: String,
    /// Files beside it with its weights, as ONNX external data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataFile>,
}

/// A file that holds weights of a variant.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// File name, relative to the bundle's folder.
    pub file: String,
    /// Hex SHA-256 of the file.
    pub sha256: String,
}

/// A picture with a known result.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// File name, relative to the bundle's folder.
    pub file: String,
    /// Hex SHA-256 of the file.
    pub sha256: String,
    /// The expected top label.
    pub label: String,
    /// The minimum score of that label.
    #[serde(default)]
    pub min_score: f32,
}

/// Arithmetic of a variant's weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 8-bit integers, quantized.
    Int8,
    /// 16-bit floating point.
    Fp16,
    /// 32-bit floating point.
    Fp32,
}

/// Element type of the graph's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InputType {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
}

/// A device that a variant is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceTag {
    /// ONNX Runtime's CPU provider.
    Cpu,
    /// ONNX Runtime's CUDA provider.
    Cuda,
    /// ONNX Runtime's TensorRT provider.
    Tensorrt,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::Fp16 => "fp16",
            Self::Fp32 => "fp32",
        })
    }
}

impl Manifest {
    /// Reads the manifest in a bundle's folder, without verifying its files.
    ///
    /// # Errors
    /// [`BundleError`] if it can't be read or is invalid.
    pub fn read(dir: &Path) -> Result<Self, BundleError> {
        super::read_manifest(dir).map(|(manifest, _)| manifest)
    }

    /// Checks what can be checked without the files.
    ///
    /// # Errors
    /// The invalid field and its value, as a sentence.
    pub fn validate(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format = {}: this version of Weir reads format {FORMAT}", self.format));
        }
        for (field, value) in [("name", &self.name), ("version", &self.version)] {
            if value.is_empty() || value.len() > 64 || !value.bytes().all(plain) {
                return Err(format!("{field} = \"{value}\": 1 to 64 letters, digits, '.', '_' and '-'"));
            }
        }
        self.preprocess.validate().map_err(|e| format!("[preprocess]: {e}"))?;
        self.check_labels()?;
        self.check_shapes()?;
        for (label, share) in self.reference.iter().flatten() {
            if !self.labels.contains(label) {
                return Err(format!("[reference] {label:?}: not among the labels"));
            }
            if !(0.0..=1.0).contains(share) {
                return Err(format!("[reference] {label} = {share}: not between 0 and 1"));
            }
        }
        let shares: f64 = self.reference.iter().flatten().map(|(_, share)| share).sum();
        if self.reference.is_some() && !(0.99..=1.01).contains(&shares) {
            return Err(format!("[reference]: the shares add up to {shares}, not to 1"));
        }
        if self.variants.is_empty() {
            return Err("there is no [[variant]]".into());
        }
        for (file, sha256) in self.files() {
            check_path(file)?;
            if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!("sha256 of {file} is \"{sha256}\", not 64 hexadecimal digits"));
            }
        }
        match self.variants.iter().find(|v| v.devices.is_empty()) {
            Some(variant) => Err(format!("variant {}: devices is empty", variant.file)),
            None => Ok(()),
        }
    }

    /// Every file with a digest: variants, their data, golden cases.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        let variants = self.variants.iter().flat_map(|variant| {
            let data = variant.data.iter().map(|d| (d.file.as_str(), d.sha256.as_str()));
            std::iter::once((variant.file.as_str(), variant.sha256.as_str())).chain(data)
        });
        variants.chain(self.golden.iter().map(|g| (g.file.as_str(), g.sha256.as_str())))
    }

    fn check_labels(&self) -> Result<(), String> {
        let outputs = self.output.shape[1] as usize;
        if self.labels.len() != outputs {
            return Err(format!(
                "there are {} labels but the output `{}` has {outputs} scores",
                self.labels.len(),
                self.output.name
            ));
        }
        if self.labels.is_empty() {
            return Err("there are no labels".into());
        }
        let mut seen = std::collections::HashSet::new();
        for label in &self.labels {
            if label.is_empty() || label.chars().any(char::is_control) {
                return Err(format!("label {label:?} is empty or holds control characters"));
            }
            if !seen.insert(label) {
                return Err(format!("label \"{label}\" is listed twice"));
            }
        }
        for golden in &self.golden {
            if !seen.contains(&golden.label) {
                return Err(format!("golden case {}: there is no label \"{}\"", golden.file, golden.label));
            }
            if !(0.0..=1.0).contains(&golden.min_score) {
                return Err(format!("golden case {}: min_score = {}", golden.file, golden.min_score));
            }
        }
        Ok(())
    }

    fn check_shapes(&self) -> Result<(), String> {
        let [batch, channels, height, width] = self.input.shape;
        if batch > 1 || self.output.shape[0] > 1 {
            return Err(format!(
                "input shape {:?} and output shape {:?}: the batch dimension must be 0 (any) or 1",
                self.input.shape, self.output.shape
            ));
        }
        let crop = self.preprocess.crop;
        if channels != 3 || height != crop || width != crop {
            return Err(format!(
                "input shape {:?} does not fit [preprocess] crop = {crop}: it must be [N, 3, {crop}, {crop}]",
                self.input.shape
            ));
        }
        Ok(())
    }
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// Bundles may come from elsewhere, so their paths must not leave the bundle's folder.
fn check_path(file: &str) -> Result<(), String> {
    let path = std::path::Path::new(file);
    let inside = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if file.is_empty() || !inside || file.contains('\\') {
        return Err(format!("file = \"{file}\" leads out of the bundle's folder"));
    }
    Ok(())
}
