//! Input and output of an ONNX graph, as the engine reads them.

use std::path::Path;

use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{Outlet, TensorElementType, ValueType};

use super::{EngineError, Runtime};
use crate::bundle::InputType;

/// The one input and the one output of a classifier's graph.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The input.
    pub input: Port,
    /// The output.
    pub output: Port,
}

/// An input or an output.
#[derive(Clone, Debug)]
pub struct Port {
    /// Name in the graph.
    pub name: String,
    /// Dimensions; dynamic axes are below 1.
    pub dims: Vec<i64>,
    /// Element type.
    pub kind: TensorElementType,
}

impl Graph {
    /// Reads the graph of an ONNX file, whatever its element types.
    ///
    /// # Errors
    /// [`EngineError::Model`] if it is not an ONNX model or external data is missing, [`EngineError::Mismatch`] if it is not
    /// the graph of a classifier.
    pub fn read(runtime: &Runtime, path: &Path) -> Result<Self, EngineError> {
        let failed = |source: ort::Error| EngineError::Model { path: path.into(), source };
        let session = Session::builder(runtime.environment())
            .map_err(failed)?
            .with_optimization_level(GraphOptimizationLevel::Disable)
            .map_err(|e| failed(e.into()))?
            .with_intra_threads(1)
            .map_err(|e| failed(e.into()))?
            .commit_from_file(path)
            .map_err(failed)?;
        Self::of(&session, path)
    }

    /// The graph of a session, which was loaded from `path`.
    ///
    /// # Errors
    /// [`EngineError::Mismatch`] if it does not have one input and one output, which are tensors.
    pub(super) fn of(session: &Session, path: &Path) -> Result<Self, EngineError> {
        let mismatch = |reason: String| EngineError::Mismatch { path: path.into(), reason };
        let ([input], [output]) = (session.inputs(), session.outputs()) else {
            return Err(mismatch(format!(
                "the graph has {} inputs and {} outputs, a classifier has one of each",
                session.inputs().len(),
                session.outputs().len()
            )));
        };
        let port = |outlet: &Outlet| match outlet.dtype() {
            ValueType::Tensor { ty, shape, .. } => {
                Ok(Port { name: outlet.name().to_owned(), dims: shape.to_vec(), kind: *ty })
            }
            _ => Err(mismatch(format!("`{}` is not a tensor", outlet.name()))),
        };
        Ok(Self { input: port(input)?, output: port(output)? })
    }
}

impl Port {
    /// The dimensions as in a manifest, with 0 for dynamic axes. `what` names the port in the error, `meant` the dimensions.
    ///
    /// # Errors
    /// If there are not `N` dimensions.
    pub fn shape<const N: usize>(&self, what: &str, meant: &str) -> Result<[u32; N], String> {
        let sizes: Option<Vec<u32>> = self.dims.iter().map(|&size| u32::try_from(size.max(0)).ok()).collect();
        sizes.and_then(|sizes| sizes.try_into().ok()).ok_or_else(|| {
            format!(
                "the graph's {what} `{}` has the shape {:?}: a classifier has [{meant}]",
                self.name, self.dims
            )
        })
    }

    /// The element type as in a manifest.
    ///
    /// # Errors
    /// If it is neither f32 nor f16.
    pub fn input_type(&self, what: &str) -> Result<InputType, String> {
        match self.kind {
            TensorElementType::Float32 => Ok(InputType::F32),
            TensorElementType::Float16 => Ok(InputType::F16),
            other => Err(format!("the graph's {what} `{}` holds {other}: it must be f32 or f16", self.name)),
        }
    }

    /// The first difference from a manifest's name and shape. Dynamic axes are -1 in the graph and 0 in the manifest.
    pub fn differs(&self, what: &str, name: &str, shape: &[u32]) -> Option<String> {
        if self.name != name {
            return Some(format!("{what} is named `{}` in the graph and `{name}` in bundle.toml", self.name));
        }
        let fits = self.dims.len() == shape.len()
            && self.dims.iter().zip(shape).all(|(&graph, &declared)| {
                graph < 1 || graph == i64::from(declared) || (declared == 0 && graph == 1)
            });
        let both = || format!("has shape {:?} in the graph and {shape:?} in bundle.toml", self.dims);
        (!fits).then(|| format!("{what} `{name}` {}", both()))
    }
}
