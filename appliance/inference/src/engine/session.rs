//! One ONNX Runtime session with its input slot: pixels are written straight into the tensor that the engine reads.

use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{Tensor, TensorElementType, ValueType};

use super::scores::Contract;
use super::{EngineError, Runtime};
use crate::bundle::{InputType, ModelFile, Shape};

/// A session for one image or a few at a time, owned by one lane. Single-threaded: on a CPU one such session a core
/// beats one session with many threads (docs/performance.md).
#[derive(Debug)]
pub struct Classifier {
    session: Session,
    input: Tensor<f32>,
    batch: Option<Tensor<f32>>,
    labels: usize,
    contract: Contract,
}

impl Classifier {
    /// Loads a CPU session and checks the graph against what the bundle declares.
    ///
    /// # Errors
    /// [`EngineError::Model`] if ONNX Runtime refuses the file, [`EngineError::Mismatch`] if names, types or shapes
    /// differ from bundle.toml.
    ///
    /// With `images` over 1 the session also has a slot for exactly so many, unless the graph takes one at a time.
    pub fn load(runtime: &Runtime, model: &ModelFile, images: usize) -> Result<Self, EngineError> {
        let failed = |source: ort::Error| EngineError::Model { path: model.path.clone(), source };
        let mut builder = Session::builder(runtime.environment())
            .map_err(failed)?
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(|e| failed(e.into()))?
            .with_intra_threads(1)
            .map_err(|e| failed(e.into()))?
            .with_inter_threads(1)
            .map_err(|e| failed(e.into()))?
            .with_intra_op_spinning(false)
            .map_err(|e| failed(e.into()))?;
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

    /// Images that [`Classifier::run_batch`] takes, no more and no fewer; `None` when there is no such slot.
    pub fn batch(&self) -> Option<usize> {
        self.batch.as_ref().map(|batch| usize::try_from(batch.shape()[0]).unwrap_or(1))
    }

    /// The slot for a batch: one image after the other, each as in [`Classifier::input`]. Empty when there is none.
    ///
    /// # Errors
    /// [`EngineError::Run`] if ONNX Runtime does not give the tensor's memory out.
    pub fn batch_input(&mut self) -> Result<&mut [f32], EngineError> {
        match &mut self.batch {
            Some(batch) => Ok(batch.try_extract_tensor_mut::<f32>().map_err(EngineError::Run)?.1),
            None => Ok(&mut []),
        }
    }

    /// Copies one image of the batch's slot to the slot for one.
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

    /// Runs the network on the whole batch: one list of scores an image.
    ///
    /// # Errors
    /// As for [`Classifier::run`], and then for all of them.
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

    /// The slot for one image: `3 * height * width` values, NCHW, normalised as the bundle's preprocess says.
    ///
    /// # Errors
    /// [`EngineError::Run`] if ONNX Runtime does not give the tensor's memory out.
    pub fn input(&mut self) -> Result<&mut [f32], EngineError> {
        let (_, data) = self.input.try_extract_tensor_mut::<f32>().map_err(EngineError::Run)?;
        Ok(data)
    }

    /// Runs the network on the input slot; `scores` gets one value a label.
    ///
    /// # Errors
    /// [`EngineError::Run`], [`EngineError::NotFinite`], [`EngineError::OutOfRange`] or [`EngineError::Sum`] for values that
    /// are no scores.
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

/// Whether the graph's first axis, that of the images, is left open.
pub(super) fn takes_several(session: &Session) -> bool {
    let open = |outlet: &ort::value::Outlet| match outlet.dtype() {
        ValueType::Tensor { shape, .. } => shape.first().is_some_and(|&images| images < 1),
        _ => false,
    };
    session.inputs().iter().all(open) && session.outputs().iter().all(open)
}

/// Checks the graph against what the bundle declares; the input's element type is the declared one, the output's one of
/// `outputs`, and returned.
pub(super) fn check(
    session: &Session,
    model: &ModelFile,
    outputs: &[TensorElementType],
) -> Result<TensorElementType, EngineError> {
    let mismatch = |reason: String| EngineError::Mismatch { path: model.path.clone(), reason };
    if session.inputs().len() != 1 || session.outputs().len() != 1 {
        return Err(mismatch(format!(
            "the graph has {} inputs and {} outputs, a classifier has one of each",
            session.inputs().len(),
            session.outputs().len()
        )));
    }
    let input_type = match model.input_type {
        InputType::F16 if outputs.contains(&TensorElementType::Float16) => TensorElementType::Float16,
        InputType::F16 | InputType::F32 => TensorElementType::Float32,
    };
    checked("input", &session.inputs()[0], &model.input, &[input_type]).map_err(mismatch)?;
    checked("output", &session.outputs()[0], &model.output, outputs).map_err(mismatch)
}

fn checked(
    what: &str,
    outlet: &ort::value::Outlet,
    declared: &Shape,
    types: &[TensorElementType],
) -> Result<TensorElementType, String> {
    if outlet.name() != declared.name {
        return Err(format!(
            "{what} is called `{}` in the graph and `{}` in bundle.toml",
            outlet.name(),
            declared.name
        ));
    }
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Err(format!("{what} `{}` is not a tensor", declared.name));
    };
    if !types.contains(ty) {
        let needed = types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        return Err(format!("{what} `{}` holds {ty}, the lanes of this device need {needed}", declared.name));
    }
    if !fits(shape, declared) {
        return Err(format!(
            "{what} `{}` has shape {:?} in the graph and {:?} in bundle.toml",
            declared.name,
            &shape[..],
            declared.dims
        ));
    }
    Ok(*ty)
}

/// Whether a graph's shape can take the declared one; dynamic axes are -1 in the graph and 0 in the bundle.
fn fits(graph: &[i64], declared: &Shape) -> bool {
    graph.len() == declared.dims.len()
        && graph
            .iter()
            .zip(&declared.dims)
            .all(|(&g, &d)| g < 1 || (d > 0 && g == i64::from(d)) || (d == 0 && g == 1))
}
