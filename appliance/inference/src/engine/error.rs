//! Errors between a model file and its scores, and whether the model or this machine is at fault.
//!
//! ONNX Runtime has codes for a graph that it does not understand, and none for running out of memory, files or threads: those
//! are reported as general failures whose texts contain the system's message. Files are verified before they are loaded, so an
//! unreadable file is the machine's fault as well.

use std::path::PathBuf;

use ort::ErrorCode;

use super::{DeviceKind, LIBRARY_NAME, Provider};

/// Errors between a model file and its scores.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// libonnxruntime is in none of the locations that are searched.
    #[error(
        "libonnxruntime was not found; searched: {searched}. Remedy: run `make onnxruntime`, put {LIBRARY_NAME} \
         beside the weir binary, or name it in `engine.onnxruntime` or ORT_DYLIB_PATH"
    )]
    LibraryMissing {
        /// Every path that was tried, with its source.
        searched: String,
    },
    /// The library exists, but can't be loaded.
    #[error(
        "{} can't be loaded as ONNX Runtime: {reason}. Remedy: run `make onnxruntime` to fetch the right one, \
         or name another in `engine.onnxruntime` or ORT_DYLIB_PATH", path.display()
    )]
    LibraryUnusable {
        /// The file that was tried.
        path: PathBuf,
        /// The loader's message.
        reason: String,
    },
    /// The configured device is not available on this machine or in this build.
    #[error("engine.device = \"{asked}\" can't be served here: {reason}. Remedy: {remedy}")]
    DeviceUnavailable {
        /// The configured device.
        asked: DeviceKind,
        /// Why it is not available.
        reason: String,
        /// How to fix it.
        remedy: String,
    },
    /// An execution provider is not available.
    #[error(
        "ONNX Runtime's {provider} provider can't be used: {}. Remedy: see what `weir doctor` says of its libraries",
        source.to_string().trim()
    )]
    Provider {
        /// The provider.
        provider: Provider,
        /// ONNX Runtime's error.
        source: ort::Error,
    },
    /// The GPU can't be used.
    #[error("the GPU can't be used: {0}. Remedy: {remedy}", remedy = .0.remedy())]
    Gpu(#[from] gpu_kernels::cuda::GpuError),
    /// ONNX Runtime can't load the model.
    #[error("{} does not load: {source}", path.display())]
    Model {
        /// The model file.
        path: PathBuf,
        /// ONNX Runtime's error.
        source: ort::Error,
    },
    /// The model's graph differs from its bundle's manifest.
    #[error("{} does not fit its bundle.toml: {reason}", path.display())]
    Mismatch {
        /// The model file.
        path: PathBuf,
        /// The difference, with both values.
        reason: String,
    },
    /// Building a lane's device panicked.
    #[error("building the device of lane {lane} panicked")]
    BuildPanicked {
        /// Number of the lane.
        lane: usize,
    },
    /// A lane's thread can't be started.
    #[error("a lane's thread can't be started: {0}")]
    Thread(#[source] std::io::Error),
    /// A golden case has a wrong result on this device.
    #[error(
        "golden case {file}: {reason}. On this device the model does not compute what its bundle specifies"
    )]
    Golden {
        /// The case; empty if the failure is not specific to one.
        file: String,
        /// What was expected and what was computed.
        reason: String,
    },
    /// The folder for TensorRT's engines can't be created.
    #[error("TensorRT's engines can't be kept in {}: {source}. Remedy: see that data_dir can be written", path.display())]
    EngineCache {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The decoder can't be initialised.
    #[error("images can't be decoded here: {0}")]
    Decoder(String),
    /// A run failed.
    #[error("inference failed: {0}")]
    Run(#[source] ort::Error),
    /// The number of scores differs from the number of labels, which only shows at run time where the output shape is dynamic.
    #[error("the model answered with {found} scores, the bundle has {labels} labels")]
    ScoreCount {
        /// Number of computed scores.
        found: usize,
        /// Number of labels in bundle.toml.
        labels: usize,
    },
    /// A score is NaN or infinite.
    #[error("the model answered with a score that is not a finite number (label {label})")]
    NotFinite {
        /// Index of the first label whose score is NaN or infinite.
        label: usize,
    },
    /// A score is not a probability.
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
    /// The scores of an image are not a probability distribution.
    #[error(
        "the model's scores for an image add up to {sum}, not to 1. Remedy: end the graph in a softmax, or declare \
         `kind = \"logits\"` in [output] of bundle.toml"
    )]
    Sum {
        /// Their sum.
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
    /// Whether a retry of the same image may succeed.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Run(_)) || self.is_of_the_device()
    }

    /// Whether this machine is at fault: its device, its libraries, or exhausted memory, files or threads. The same model may
    /// load or run later.
    pub fn is_of_the_machine(&self) -> bool {
        match self {
            Self::Model { source, .. } | Self::Run(source) => fault_of(source) == Fault::Machine,
            Self::LibraryMissing { .. } | Self::LibraryUnusable { .. } => true,
            _ => self.is_of_the_device(),
        }
    }

    /// Whether the model is certainly at fault. Neither this nor [`EngineError::is_of_the_machine`] holds where ONNX Runtime's
    /// error is ambiguous.
    pub fn is_of_the_model(&self) -> bool {
        match self {
            Self::Model { source, .. } | Self::Run(source) => fault_of(source) == Fault::Model,
            // Without a case, something else failed.
            Self::Golden { file, .. } => !file.is_empty(),
            Self::Mismatch { .. }
            | Self::ScoreCount { .. }
            | Self::NotFinite { .. }
            | Self::OutOfRange { .. }
            | Self::Sum { .. } => true,
            _ => false,
        }
    }

    /// The label for metrics of invalid scores; `None` for other errors.
    pub fn fault_of_scores(&self) -> Option<&'static str> {
        match self {
            Self::ScoreCount { .. } => Some("count"),
            Self::NotFinite { .. } => Some("not_finite"),
            Self::OutOfRange { .. } => Some("out_of_range"),
            Self::Sum { .. } => Some("sum"),
            _ => None,
        }
    }

    /// Whether this machine's device or its libraries are at fault, and not the model.
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

/// Substrings (in lower case) of messages that show a fault of this machine.
const SIGNS: [&str; 12] = [
    // std::bad_alloc, and the arenas' "Failed to allocate memory for requested buffer of size".
    "bad_alloc",
    "allocate memory",
    "out of memory",
    // An errno, as a number ("Load model from m.onnx failed: system error number 24") or as text.
    "system error number",
    "too many open files",
    "resource temporarily unavailable",
    "no space left on device",
    "input/output error",
    "stale file handle",
    "permission denied",
    // Its thread pools, and memory-mapped external data.
    "pthread_create",
    "mmap",
];

/// What is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// This machine: a resource is exhausted or its disk fails. The operation may succeed later.
    Machine,
    /// The model: it does not work here.
    Model,
    /// Unknown.
    Unclear,
}

fn fault_of(error: &ort::Error) -> Fault {
    judge(error.code(), error.message())
}

fn judge(code: ErrorCode, message: &str) -> Fault {
    let text = message.to_lowercase();
    match code {
        ErrorCode::InvalidArgument
        | ErrorCode::NoModel
        | ErrorCode::InvalidProtobuf
        | ErrorCode::NotImplemented
        | ErrorCode::InvalidGraph => Fault::Model,
        ErrorCode::NoSuchFile | ErrorCode::DeviceReset => Fault::Machine,
        _ if SIGNS.iter().any(|sign| text.contains(sign)) => Fault::Machine,
        _ => Fault::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_is_told_from_what_the_model_is() {
        let failure = ErrorCode::GenericFailure;
        for (code, message, fault) in [
            (failure, "Exception during initialization: std::bad_alloc", Fault::Machine),
            (failure, "Load model from m.onnx failed:system error number 24", Fault::Machine),
            (failure, "open file \"m.data\" failed: Too many open files", Fault::Machine),
            (
                ErrorCode::RuntimeException,
                "Failed to allocate memory for requested buffer of size 1073741824",
                Fault::Machine,
            ),
            (ErrorCode::NoSuchFile, "Load model from m.onnx failed. File doesn't exist", Fault::Machine),
            (ErrorCode::InvalidGraph, "This is an invalid model. Error in Node: out of memory", Fault::Model),
            (ErrorCode::InvalidProtobuf, "Protobuf parsing failed.", Fault::Model),
            (failure, "Fatal error: example:Colour(-1) is not a registered function/op", Fault::Unclear),
            (
                ErrorCode::RuntimeException,
                "Non-zero status code returned while running Gather",
                Fault::Unclear,
            ),
        ] {
            assert_eq!(judge(code, message), fault, "{message}");
        }
    }
}
