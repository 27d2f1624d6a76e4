//! ONNX Runtime: finding the library, loading it once, and turning a verified variant into a runnable session.

mod binding;
mod bound;
mod cache;
mod device;
mod fault;
mod gpu_libraries;
mod graph;
mod locate;
mod provider;
mod scores;
mod session;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use fault::Fault;

pub use bound::{BoundSession, SlotMemory};
pub use cache::EngineCache;
pub use device::{DeviceChoice, DeviceKind, DeviceRequest, choose as choose_device, load_runtime};
pub use gpu_libraries::{GpuLibraries, MissingLibraries};
pub use graph::{Graph, Port};
pub use locate::{LIBRARY_NAME, candidates as library_candidates};
pub use provider::{Profile, Provider, ProviderSettings, StreamHandle};
pub use session::Classifier;

/// What can go wrong between a model file and its scores.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// libonnxruntime is in none of the places where it is looked for.
    #[error(
        "libonnxruntime was not found; looked at: {looked}. Remedy: run `make onnxruntime`, put {LIBRARY_NAME} \
         beside the weir binary, or name it in `engine.onnxruntime` or ORT_DYLIB_PATH"
    )]
    LibraryMissing {
        /// Every path that was tried, with where the path came from.
        looked: String,
    },
    /// A library is there, but it cannot be loaded.
    #[error(
        "{} can't be loaded as ONNX Runtime: {reason}. Remedy: run `make onnxruntime` to fetch the right one, \
         or name another in `engine.onnxruntime` or ORT_DYLIB_PATH", path.display()
    )]
    LibraryUnusable {
        /// The file that was tried.
        path: PathBuf,
        /// The loader's own words.
        reason: String,
    },
    /// The configuration asks for a device that this box or build cannot give.
    #[error("engine.device = \"{asked}\" can't be served here: {reason}. Remedy: {remedy}")]
    DeviceUnavailable {
        /// The configured device.
        asked: DeviceKind,
        /// What is missing.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// A provider can't be had.
    #[error(
        "ONNX Runtime's {provider} provider can't be used: {}. Remedy: see what `weir doctor` says of its libraries",
        source.to_string().trim()
    )]
    Provider {
        /// Which.
        provider: Provider,
        /// ONNX Runtime's error.
        source: ort::Error,
    },
    /// The GPU refused.
    #[error("the GPU can't be used: {0}. Remedy: {remedy}", remedy = .0.remedy())]
    Gpu(#[from] gpu_kernels::cuda::GpuError),
    /// The model does not load.
    #[error("{} does not load: {source}", path.display())]
    Model {
        /// The model file.
        path: PathBuf,
        /// ONNX Runtime's error.
        source: ort::Error,
    },
    /// The model's graph is not what its bundle says.
    #[error("{} does not fit its bundle.toml: {reason}", path.display())]
    Mismatch {
        /// The model file.
        path: PathBuf,
        /// What differs, with both sides named.
        reason: String,
    },
    /// Building a lane's device panicked, which is a fault of ours or of a library.
    #[error("building the device of lane {lane} panicked")]
    BuildPanicked {
        /// The lane.
        lane: usize,
    },
    /// A lane's thread can't be started.
    #[error("a lane's thread can't be started: {0}")]
    Thread(#[source] std::io::Error),
    /// A golden case came out wrong on this device.
    #[error(
        "golden case {file}: {reason}. The model does not compute on this device what its bundle promises"
    )]
    Golden {
        /// The case; empty where none is to blame.
        file: String,
        /// What came out.
        reason: String,
    },
    /// The folder for TensorRT's engines can't be made.
    #[error("TensorRT's engines can't be kept in {}: {source}. Remedy: see that data_dir can be written", path.display())]
    EngineCache {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The decoder can't be set up.
    #[error("images can't be decoded here: {0}")]
    Decoder(String),
    /// A run failed.
    #[error("inference failed: {0}")]
    Run(#[source] ort::Error),
    /// The graph's output is dynamic and turned out not to fit.
    #[error("the model answered with {found} scores, the bundle has {labels} labels")]
    ScoreCount {
        /// Scores that came out.
        found: usize,
        /// Labels in bundle.toml.
        labels: usize,
    },
    /// The scores are not numbers; nothing computed from them would be true.
    #[error("the model answered with a score that is not a finite number (label {label})")]
    NotFinite {
        /// Index of the first label whose score is NaN or infinite.
        label: usize,
    },
    /// A score is no probability.
    #[error(
        "the model answered with a score of {score} for label {label}, which is not between 0 and 1. Remedy: end the graph \
         in a softmax, or declare `kind = \"logits\"` in [output] of bundle.toml"
    )]
    OutOfRange {
        /// Index of the first such label.
        label: usize,
        /// Its score.
        score: f32,
    },
    /// The scores of an image are not those of one choice among the labels.
    #[error(
        "the model's scores for an image add up to {sum}, not to 1. Remedy: end the graph in a softmax, or declare \
         `kind = \"logits\"` in [output] of bundle.toml"
    )]
    Sum {
        /// What they add up to.
        sum: f32,
    },
}

impl From<gpu_kernels::decode::nvjpeg::GpuDecodeError> for EngineError {
    fn from(error: gpu_kernels::decode::nvjpeg::GpuDecodeError) -> Self {
        use gpu_kernels::decode::nvjpeg::GpuDecodeError;
        match error {
            GpuDecodeError::Gpu(error) => error.into(),
            GpuDecodeError::NvJpeg(error) => Self::Decoder(error.to_string()),
        }
    }
}

impl EngineError {
    /// Whether the same image may come out otherwise when it is tried again.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Run(_)) || self.is_of_the_device()
    }

    /// Whether this machine is at fault, and not the model: its device or libraries, or it has run out of memory, files or
    /// threads. The same model may load or run later.
    pub fn is_of_the_machine(&self) -> bool {
        match self {
            Self::Model { source, .. } | Self::Run(source) => fault::of(source) == Fault::Machine,
            Self::LibraryMissing { .. } | Self::LibraryUnusable { .. } => true,
            _ => self.is_of_the_device(),
        }
    }

    /// Whether the model is at fault for certain. Neither this nor [`EngineError::is_of_the_machine`] holds for what ONNX
    /// Runtime gives no clear reason for.
    pub fn is_of_the_model(&self) -> bool {
        match self {
            Self::Model { source, .. } | Self::Run(source) => fault::of(source) == Fault::Model,
            // Without a picture, something on the way to it failed.
            Self::Golden { file, .. } => !file.is_empty(),
            Self::Mismatch { .. }
            | Self::ScoreCount { .. }
            | Self::NotFinite { .. }
            | Self::OutOfRange { .. }
            | Self::Sum { .. } => true,
            _ => false,
        }
    }

    /// What is wrong with the values that the model has put out, in a word for metrics, where they are no scores.
    pub fn fault_of_scores(&self) -> Option<&'static str> {
        match self {
            Self::ScoreCount { .. } => Some("count"),
            Self::NotFinite { .. } => Some("not_finite"),
            Self::OutOfRange { .. } => Some("out_of_range"),
            Self::Sum { .. } => Some("sum"),
            _ => None,
        }
    }

    /// Whether this machine's device is at fault, or its libraries, and not the model.
    pub fn is_of_the_device(&self) -> bool {
        matches!(
            self,
            Self::Gpu(_)
                | Self::Provider { .. }
                | Self::Decoder(_)
                | Self::EngineCache { .. }
                | Self::Thread(_)
                | Self::BuildPanicked { .. }
        )
    }
}

static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

/// ONNX Runtime, loaded once a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: ort::environment::Environment,
    library: Arc<Path>,
}

impl Runtime {
    /// Finds libonnxruntime (`configured`, then ORT_DYLIB_PATH, then beside the executable) and loads it.
    ///
    /// # Errors
    /// [`EngineError::LibraryMissing`] with every place that was looked at; [`EngineError::LibraryUnusable`] where
    /// there is a file but it is no usable ONNX Runtime. A configured path that fails is never passed over.
    pub fn load(configured: Option<&Path>) -> Result<Self, EngineError> {
        let library = locate::find(configured)?;
        // ONNX Runtime allows one environment a process, so whoever comes second shares the first one's.
        let mut loaded = LOADED.lock();
        if let Some(runtime) = loaded.as_ref() {
            return Ok(runtime.clone());
        }
        let unusable = |reason: String| EngineError::LibraryUnusable { path: library.clone(), reason };
        let environment = ort::init_from(&library)
            .map_err(|e| unusable(e.to_string()))?
            .with_name("weir")
            .with_telemetry(false)
            .with_logger(Arc::new(log_line))
            .build()
            .map_err(|e| unusable(e.to_string()))?;
        let runtime = Self { environment, library: library.into() };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }

    /// The library file that was loaded.
    pub fn library(&self) -> &Path {
        &self.library
    }

    pub(crate) fn environment(&self) -> &ort::environment::Environment {
        &self.environment
    }
}

fn log_line(level: ort::logging::LogLevel, category: &str, _id: &str, _location: &str, message: &str) {
    use ort::logging::LogLevel;
    match level {
        LogLevel::Verbose | LogLevel::Info => tracing::trace!(target: "onnxruntime", category, "{message}"),
        LogLevel::Warning => tracing::debug!(target: "onnxruntime", category, "{message}"),
        LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "onnxruntime", category, "{message}"),
    }
}
