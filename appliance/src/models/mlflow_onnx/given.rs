//! What tags and the sidecar say of a plain model. A tag wins: it can be set when the files can't be changed any more.

use std::collections::BTreeMap;

use gpu_kernels::PreprocessSpec;
use inference::bundle::OutputKind;
use serde::Deserialize;
use serde::de::IntoDeserializer;

/// How each piece is given, for refusals.
const PREPROCESS: &str = "preprocess: set the tag weir.preprocess, as in \
                          `resize=256,crop=224,mean=127,std=128`, or [preprocess] in weir.toml";
const LABELS: &str = "labels: set the tag weir.labels to a JSON array in the order of the output, or weir.labels_file to \
                      the name of a text file among the artifacts, or labels in weir.toml";

/// Where labels come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::models) enum Labels {
    These(Vec<String>),
    /// An artifact of one label a line.
    File(String),
}

/// What was given. What is missing is told by [`Given::gather`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::models) struct Given {
    pub(in crate::models) name: Option<String>,
    #[serde(default)]
    pub(in crate::models) description: String,
    #[serde(default)]
    pub(in crate::models) license: String,
    labels: Option<Vec<String>>,
    labels_file: Option<String>,
    /// Hex SHA-256 of the ONNX file.
    pub(in crate::models) sha256: Option<String>,
    preprocess: Option<Pixels>,
    pub(super) input: Option<Declared>,
    pub(super) output: Option<Declared>,
    #[serde(default)]
    pub(in crate::models) golden: Vec<GivenCase>,
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
pub(in crate::models) struct GivenCase {
    pub(in crate::models) file: String,
    pub(in crate::models) sha256: Option<String>,
    pub(in crate::models) label: String,
    #[serde(default)]
    pub(in crate::models) min_score: f32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pixels {
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

impl Given {
    /// Puts tags and sidecar together. The list says what is missing or wrong, each with the way to give it.
    pub(in crate::models) fn gather(
        tags: &BTreeMap<String, String>,
        sidecar: Option<&str>,
    ) -> (Self, Vec<String>) {
        let mut faults = Vec::new();
        let mut given: Self = sidecar.map_or_else(Self::default, |text| {
            toml::from_str(text).unwrap_or_else(|error| {
                faults
                    .push(format!("weir.toml is not valid: {}", error.to_string().trim().replace('\n', " ")));
                Self::default()
            })
        });
        let tag = |name: &str| tags.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        if let Some(text) = tag("weir.preprocess") {
            match pixels(text) {
                Ok(pixels) => given.preprocess = Some(pixels),
                Err(reason) => faults.push(format!("the tag weir.preprocess = {text:?}: {reason}")),
            }
        } else if given.preprocess.is_none() {
            faults.push(PREPROCESS.into());
        }
        if let Some(spec) = given.preprocess()
            && let Err(error) = spec.validate()
        {
            faults.push(format!("preprocess: {error}"));
        }
        if let Some(text) = tag("weir.labels") {
            match labels(text) {
                Ok(labels) => (given.labels, given.labels_file) = (Some(labels), None),
                Err(reason) => faults.push(format!("the tag weir.labels: {reason}")),
            }
        } else if let Some(file) = tag("weir.labels_file") {
            (given.labels, given.labels_file) = (None, Some(file.into()));
        } else if given.labels.is_none() && given.labels_file.is_none() {
            faults.push(LABELS.into());
        }
        if let Some(text) = tag("weir.output") {
            match OutputKind::deserialize(text.into_deserializer()) {
                Ok(kind) => given.output.get_or_insert_default().kind = Some(kind),
                Err::<_, serde::de::value::Error>(error) => {
                    faults.push(format!("the tag weir.output = {text:?}: {error}"));
                }
            }
        }
        if given.input.as_ref().is_some_and(|input| input.kind.is_some()) {
            faults.push("weir.toml: kind belongs to [output], not to [input]".into());
        }
        for (name, field) in [("weir.model", &mut given.name), ("weir.sha256", &mut given.sha256)] {
            if let Some(text) = tag(name) {
                *field = Some(text.into());
            }
        }
        (given, faults)
    }

    pub(in crate::models) fn preprocess(&self) -> Option<PreprocessSpec> {
        let Pixels { resize, crop, mean, std } = self.preprocess.clone()?;
        Some(PreprocessSpec { resize, crop, mean: mean.each(), std: std.each() })
    }

    pub(in crate::models) fn labels(&self) -> Option<Labels> {
        let these = self.labels.clone().map(Labels::These);
        these.or_else(|| self.labels_file.clone().map(Labels::File))
    }

    /// What the values of the output are; probabilities unless that is said.
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
fn pixels(text: &str) -> Result<Pixels, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        of: Pixels,
    }
    if text.starts_with('{')
        && let Ok(pixels) = serde_json::from_str(text)
    {
        return Ok(pixels);
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
