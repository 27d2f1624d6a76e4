//! A plain ONNX model, as MLflow's onnx flavour logs it, made into a bundle: what the graph does not say comes from tags
//! of the version or from a sidecar, `weir.toml`.

use std::collections::BTreeMap;

use gpu_kernels::PreprocessSpec;
use inference::bundle::{
    DataFile, DeviceTag, Golden, Input, InputType, Manifest, Output, OutputKind, Precision, Variant,
};
use inference::engine::Graph;
use serde::Deserialize;
use serde::de::{IgnoredAny, IntoDeserializer};

/// Everything a plain model lacks to become a bundle.
pub(super) struct Complete {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) labels: Vec<String>,
    pub(super) preprocess: PreprocessSpec,
    pub(super) model: DataFile,
    pub(super) data: Vec<DataFile>,
    pub(super) golden: Vec<Golden>,
}

impl Complete {
    /// The manifest of the bundle, its shapes taken from the graph and compared with those of the sidecar.
    ///
    /// # Errors
    /// A sentence that names what does not fit.
    pub(super) fn manifest(self, spec: &PlainModelSpec, graph: &Graph) -> Result<Manifest, String> {
        let crop = self.preprocess.crop;
        let shape = graph.input.shape::<4>("input", "N, 3, height, width")?;
        // What the graph leaves open is what the preprocess makes.
        let [_, channels, height, width] = shape;
        let side = |found: u32| if found == 0 { crop } else { found };
        let channels = if channels == 0 { 3 } else { channels };
        let input =
            Input { name: graph.input.name.clone(), shape: [shape[0], channels, side(height), side(width)] };
        let [images, scores] = graph.output.shape::<2>("output", "N, labels")?;
        let labels = u32::try_from(self.labels.len()).unwrap_or(u32::MAX);
        let scores = if scores == 0 { labels } else { scores };
        let kind = spec.output_kind();
        let output = Output { name: graph.output.name.clone(), shape: [images, scores], kind };
        spec.fits("input", spec.input.as_ref(), &input.name, &input.shape)?;
        spec.fits("output", spec.output.as_ref(), &output.name, &output.shape)?;
        let (precision, devices) = match graph.input.input_type("input")? {
            InputType::F32 => (Precision::Fp32, vec![DeviceTag::Cpu, DeviceTag::Cuda]),
            InputType::F16 => (Precision::Fp16, vec![DeviceTag::Cuda, DeviceTag::Tensorrt]),
        };
        let DataFile { file, sha256 } = self.model;
        let input_type = graph.input.input_type("input")?;
        let variant = Variant { file, precision, input_type, devices, sha256, data: self.data };
        let manifest = Manifest {
            format: 1,
            name: self.name,
            version: self.version,
            description: spec.description.clone(),
            license: spec.license.clone(),
            labels: self.labels,
            input,
            output,
            preprocess: self.preprocess,
            variants: vec![variant],
            golden: self.golden,
            reference: None,
        };
        manifest.validate().map(|()| manifest)
    }
}

/// How to specify what is missing, for error messages.
const PREPROCESS: &str = "preprocess: set the tag weir.preprocess, as in \
                          `resize=256,crop=224,mean=127,std=128`, or [preprocess] in weir.toml";
const LABELS: &str = "labels: set the tag weir.labels to a JSON array in the order of the output, or weir.labels_file to \
                      the name of a text file among the artifacts, or labels in weir.toml";

/// Where labels come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Labels {
    Listed(Vec<String>),
    /// An artifact with one label per line.
    File(String),
}

/// What tags and the sidecar specify. A tag wins: it can be set when the files can't be changed any more.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlainModelSpec {
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) license: String,
    labels: Option<Vec<String>>,
    labels_file: Option<String>,
    /// Hex SHA-256 of the ONNX file.
    pub(super) sha256: Option<String>,
    preprocess: Option<PreprocessFields>,
    pub(super) input: Option<Declared>,
    pub(super) output: Option<Declared>,
    #[serde(default)]
    pub(super) golden: Vec<GoldenSpec>,
}

/// A name and a shape that the graph must have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Declared {
    name: Option<String>,
    shape: Option<Vec<u32>>,
    /// What the values are; of the output alone.
    kind: Option<OutputKind>,
}

/// A golden case of a sidecar; its digest is taken from the file where none is given.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GoldenSpec {
    pub(super) file: String,
    pub(super) sha256: Option<String>,
    pub(super) label: String,
    #[serde(default)]
    pub(super) min_score: f32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PreprocessFields {
    resize: u32,
    crop: u32,
    mean: Channels,
    std: Channels,
}

/// One number for all channels, or one each.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Channels {
    All(f32),
    Each([f32; 3]),
}

impl Channels {
    fn each(self) -> [f32; 3] {
        match self {
            Self::All(value) => [value; 3],
            Self::Each(values) => values,
        }
    }
}

impl PlainModelSpec {
    /// Combines tags and sidecar. The list says what is missing or wrong, each with the remedy.
    pub(super) fn gather(tags: &BTreeMap<String, String>, sidecar: Option<&str>) -> (Self, Vec<String>) {
        let mut faults = Vec::new();
        let mut spec: Self = sidecar.map_or_else(Self::default, |text| {
            toml::from_str(text).unwrap_or_else(|error| {
                faults
                    .push(format!("weir.toml is not valid: {}", error.to_string().trim().replace('\n', " ")));
                Self::default()
            })
        });
        let tag = |name: &str| tags.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        if let Some(text) = tag("weir.preprocess") {
            match preprocess_fields(text) {
                Ok(fields) => spec.preprocess = Some(fields),
                Err(reason) => faults.push(format!("the tag weir.preprocess = {text:?}: {reason}")),
            }
        } else if spec.preprocess.is_none() {
            faults.push(PREPROCESS.into());
        }
        if let Some(preprocess) = spec.preprocess()
            && let Err(error) = preprocess.validate()
        {
            faults.push(format!("preprocess: {error}"));
        }
        if let Some(text) = tag("weir.labels") {
            match labels(text) {
                Ok(labels) => (spec.labels, spec.labels_file) = (Some(labels), None),
                Err(reason) => faults.push(format!("the tag weir.labels: {reason}")),
            }
        } else if let Some(file) = tag("weir.labels_file") {
            (spec.labels, spec.labels_file) = (None, Some(file.into()));
        } else if spec.labels.is_none() && spec.labels_file.is_none() {
            faults.push(LABELS.into());
        }
        if let Some(text) = tag("weir.output") {
            match OutputKind::deserialize(text.into_deserializer()) {
                Ok(kind) => spec.output.get_or_insert_default().kind = Some(kind),
                Err::<_, serde::de::value::Error>(error) => {
                    faults.push(format!("the tag weir.output = {text:?}: {error}"));
                }
            }
        }
        if spec.input.as_ref().is_some_and(|input| input.kind.is_some()) {
            faults.push("weir.toml: kind belongs to [output], not to [input]".into());
        }
        for (name, field) in [("weir.model", &mut spec.name), ("weir.sha256", &mut spec.sha256)] {
            if let Some(text) = tag(name) {
                *field = Some(text.into());
            }
        }
        (spec, faults)
    }

    pub(super) fn preprocess(&self) -> Option<PreprocessSpec> {
        let PreprocessFields { resize, crop, mean, std } = self.preprocess.clone()?;
        Some(PreprocessSpec { resize, crop, mean: mean.each(), std: std.each() })
    }

    pub(super) fn labels(&self) -> Option<Labels> {
        let these = self.labels.clone().map(Labels::Listed);
        these.or_else(|| self.labels_file.clone().map(Labels::File))
    }

    /// What the values of the output are; probabilities by default.
    pub(super) fn output_kind(&self) -> OutputKind {
        self.output.as_ref().and_then(|output| output.kind).unwrap_or_default()
    }

    pub(super) fn fits(
        &self,
        what: &str,
        said: Option<&Declared>,
        name: &str,
        shape: &[u32],
    ) -> Result<(), String> {
        let Some(said) = said else { return Ok(()) };
        if let Some(other) = said.name.as_ref().filter(|other| *other != name) {
            return Err(format!("{what} is called `{name}` in the graph and `{other}` in weir.toml"));
        }
        match &said.shape {
            Some(other) if other != shape => {
                Err(format!("{what} `{name}` has shape {shape:?} in the graph and {other:?} in weir.toml"))
            }
            _ => Ok(()),
        }
    }
}

/// `{"resize": 256, ...}`, `{resize = 256, ...}`, or `resize=256,crop=224,mean=127,std=128`.
fn preprocess_fields(text: &str) -> Result<PreprocessFields, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        of: PreprocessFields,
    }
    if text.starts_with('{')
        && let Ok(fields) = serde_json::from_str(text)
    {
        return Ok(fields);
    }
    let table = if text.starts_with('{') { format!("of = {text}") } else { format!("of = {{{text}}}") };
    let line: Line = toml::from_str(&table).map_err(|error| error.message().to_owned())?;
    Ok(line.of)
}

/// A JSON array, or names with commas between.
fn labels(text: &str) -> Result<Vec<String>, String> {
    if text.starts_with('[') {
        return serde_json::from_str(text).map_err(|error| error.to_string());
    }
    Ok(text.split(',').map(|label| label.trim().to_owned()).collect())
}

#[derive(Deserialize)]
struct MlModel {
    flavors: Flavors,
}

#[derive(Deserialize)]
struct Flavors {
    onnx: Option<Onnx>,
    #[serde(flatten)]
    others: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct Onnx {
    data: String,
}

/// The path of the ONNX file, relative to the folder of the `MLmodel`.
///
/// # Errors
/// A sentence that says what the file is not.
pub(super) fn onnx_file(text: &str) -> Result<String, String> {
    let model: MlModel = serde_saphyr::from_str(text)
        .map_err(|error| format!("MLmodel can't be read: {}", one_line(&error.to_string())))?;
    let Some(onnx) = model.flavors.onnx else {
        let others: Vec<_> = model.flavors.others.into_keys().collect();
        return Err(format!(
            "MLmodel has no onnx flavour, only {}: log the model with mlflow.onnx.log_model, or log a Weir bundle",
            others.join(", ")
        ));
    };
    Ok(onnx.data)
}

/// The parser appends an excerpt of the file to its message.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}
