//! A plain ONNX model, as MLflow's onnx flavour logs it, made into a bundle: what the graph does not say comes from tags
//! of the version or from a sidecar, `weir.toml`.

mod given;
mod mlmodel;

use gpu_kernels::PreprocessSpec;
use inference::bundle::{
    DataFile, DeviceTag, Golden, Input, InputType, Manifest, Output, Precision, Variant,
};
use inference::engine::Graph;

pub(super) use given::{Given, Labels};
pub(super) use mlmodel::onnx_file;

/// What a plain model lacks to become a bundle, all of it found.
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
    /// The manifest of the bundle, its shapes taken from the graph and held against what the sidecar says of them.
    ///
    /// # Errors
    /// A sentence that names what does not fit.
    pub(super) fn manifest(self, given: &Given, graph: &Graph) -> Result<Manifest, String> {
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
        let kind = given.output_kind();
        let output = Output { name: graph.output.name.clone(), shape: [images, scores], kind };
        given.fits("input", given.input.as_ref(), &input.name, &input.shape)?;
        given.fits("output", given.output.as_ref(), &output.name, &output.shape)?;
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
            description: given.description.clone(),
            license: given.license.clone(),
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
