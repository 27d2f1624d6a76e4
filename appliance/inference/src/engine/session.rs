//! An ONNX Runtime session on the CPU with its input slots: pixels are written directly into the tensor that the engine reads.

use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Tensor, TensorElementType, ValueType};

use super::scores::Contract;
use super::{EngineError, Graph, Port, Runtime};
use crate::bundle::{InputType, ModelFile, Shape};

/// A session for one image or a few at a time, owned by one lane. Single-threaded: on a CPU, one such session per core is
/// faster than one session with many threads (docs/performance.md).
#[derive(Debug)]
pub struct Classifier {
    session: Session,
    input: Tensor<f32>,
    batch: Option<Tensor<f32>>,
    labels: usize,
    contract: Contract,
}

impl Classifier {
    /// Loads a CPU session and checks the graph against the bundle's manifest. With `images` over 1 the session also has a
    /// batch slot for exactly that many, unless the graph takes one image at a time.
    ///
    /// # Errors
    /// [`EngineError::Model`] if ONNX Runtime can't load the file, [`EngineError::Mismatch`] if names, types or shapes differ
    /// from bundle.toml.
    pub fn load(runtime: &Runtime, model: &ModelFile, images: usize) -> Result<Self, EngineError> {
        let failed = |source: ort::Error| EngineError::Model { path: model.path.clone(), source };
        let builder = builder(runtime, model)?;
        let mut builder = builder.with_inter_threads(1).map_err(|e| failed(e.into()))?;
        let session = builder.commit_from_file(&model.path).map_err(failed)?;
        check(&session, model, &[TensorElementType::Float32])?;
        let mut dims: Vec<i64> = model.input.dims.iter().map(|&d| i64::from(d.max(1))).collect();
        let input = Tensor::<f32>::new(session.allocator(), dims.clone()).map_err(failed)?;
        let mut batch = None;
        if images > 1 && model.input.dims.first() == Some(&0) && takes_several(&session) {
            dims[0] = i64::try_from(images).unwrap_or(1);
            batch = Some(Tensor::<f32>::new(session.allocator(), dims).map_err(failed)?);
        }
        Ok(Self { session, input, batch, labels: model.labels, contract: Contract::of(model) })
    }

    /// Exact number of images for [`Classifier::run_batch`]; `None` without a batch slot.
    pub fn batch(&self) -> Option<usize> {
        self.batch.as_ref().map(|batch| usize::try_from(batch.shape()[0]).unwrap_or(1))
    }

    /// The batch slot: images in sequence, each as in [`Classifier::input`]. Empty without a batch slot.
    ///
    /// # Errors
    /// [`EngineError::Run`] if the tensor's memory is not accessible.
    pub fn batch_input(&mut self) -> Result<&mut [f32], EngineError> {
        match &mut self.batch {
            Some(batch) => Ok(batch.try_extract_tensor_mut::<f32>().map_err(EngineError::Run)?.1),
            None => Ok(&mut []),
        }
    }

    /// Copies one image of the batch slot to the single-image slot.
    ///
    /// # Errors
    /// As for [`Classifier::input`].
    pub fn take_from_batch(&mut self, image: usize) -> Result<(), EngineError> {
        let (_, one) = self.input.try_extract_tensor_mut::<f32>().map_err(EngineError::Run)?;
        let Some(batch) = &self.batch else { return Ok(()) };
        let (_, all) = batch.try_extract_tensor::<f32>().map_err(EngineError::Run)?;
        if let Some(from) = all.chunks_exact(one.len()).nth(image) {
            one.copy_from_slice(from);
        }
        Ok(())
    }

    /// Runs the network on the whole batch; returns one list of scores per image.
    ///
    /// # Errors
    /// As for [`Classifier::run`]; an error applies to the whole batch.
    pub fn run_batch(&mut self) -> Result<Vec<Vec<f32>>, EngineError> {
        let Some(batch) = &self.batch else { return Ok(Vec::new()) };
        let images = usize::try_from(batch.shape()[0]).unwrap_or(1);
        let outputs = self.session.run(ort::inputs![batch]).map_err(EngineError::Run)?;
        let (_, data) = outputs[0].try_extract_tensor::<f32>().map_err(EngineError::Run)?;
        if data.len() != self.labels * images {
            return Err(EngineError::ScoreCount { found: data.len(), labels: self.labels * images });
        }
        let mut each: Vec<Vec<f32>> = data.chunks_exact(self.labels).map(<[f32]>::to_vec).collect();
        each.iter_mut().try_for_each(|scores| self.contract.finish(scores))?;
        Ok(each)
    }

    /// The single-image slot: `3 * height * width` values, NCHW, normalised as defined by the bundle's preprocessing.
    ///
    /// # Errors
    /// [`EngineError::Run`] if the tensor's memory is not accessible.
    pub fn input(&mut self) -> Result<&mut [f32], EngineError> {
        let (_, data) = self.input.try_extract_tensor_mut::<f32>().map_err(EngineError::Run)?;
        Ok(data)
    }

    /// Runs the network on the single-image slot; `scores` gets one value per label.
    ///
    /// # Errors
    /// [`EngineError::Run`]; [`EngineError::NotFinite`], [`EngineError::OutOfRange`] or [`EngineError::Sum`] for invalid
    /// scores.
    pub fn run(&mut self, scores: &mut Vec<f32>) -> Result<(), EngineError> {
        let outputs = self.session.run(ort::inputs![&self.input]).map_err(EngineError::Run)?;
        let (_, data) = outputs[0].try_extract_tensor::<f32>().map_err(EngineError::Run)?;
        if data.len() != self.labels {
            return Err(EngineError::ScoreCount { found: data.len(), labels: self.labels });
        }
        scores.clear();
        scores.extend_from_slice(data);
        self.contract.finish(scores)
    }
}

/// Whether the graph's first axis (the batch) is dynamic.
pub(super) fn takes_several(session: &Session) -> bool {
    let open = |outlet: &ort::value::Outlet| match outlet.dtype() {
        ValueType::Tensor { shape, .. } => shape.first().is_some_and(|&images| images < 1),
        _ => false,
    };
    session.inputs().iter().all(open) && session.outputs().iter().all(open)
}

/// Checks the graph against the bundle's manifest: the input's element type must be the declared one, the output's one of
/// `outputs`, which is returned.
pub(super) fn check(
    session: &Session,
    model: &ModelFile,
    outputs: &[TensorElementType],
) -> Result<TensorElementType, EngineError> {
    let Graph { input, output } = Graph::of(session, &model.path)?;
    let input_type = match model.input_type {
        InputType::F16 if outputs.contains(&TensorElementType::Float16) => TensorElementType::Float16,
        InputType::F16 | InputType::F32 => TensorElementType::Float32,
    };
    let mismatch = |reason: String| EngineError::Mismatch { path: model.path.clone(), reason };
    check_port("input", &input, &model.input, &[input_type]).map_err(mismatch)?;
    check_port("output", &output, &model.output, outputs).map_err(mismatch)?;
    Ok(output.kind)
}

fn check_port(what: &str, port: &Port, declared: &Shape, types: &[TensorElementType]) -> Result<(), String> {
    if let Some(difference) = port.differs(what, &declared.name, &declared.dims) {
        return Err(difference);
    }
    if !types.contains(&port.kind) {
        let needed = types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        return Err(format!(
            "{what} `{}` has the element type {}; the lanes of this device need {needed}",
            port.name, port.kind
        ));
    }
    Ok(())
}

/// A session builder with the options of all sessions: full optimisation, one thread, which does not spin.
pub(super) fn builder(runtime: &Runtime, model: &ModelFile) -> Result<SessionBuilder, EngineError> {
    let failed = |source: ort::Error| EngineError::Model { path: model.path.clone(), source };
    Session::builder(runtime.environment())
        .map_err(failed)?
        .with_optimization_level(GraphOptimizationLevel::Level3)
        .map_err(|e| failed(e.into()))?
        .with_intra_threads(1)
        .map_err(|e| failed(e.into()))?
        .with_intra_op_spinning(false)
        .map_err(|e| failed(e.into()))
}
