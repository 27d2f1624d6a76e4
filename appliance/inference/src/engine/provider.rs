//! ONNX Runtime's execution providers for GPUs: what each is told, and the errors when it can't be had.
#![allow(unsafe_code, reason = "a provider is given a stream of ours; the block says why it is sound")]

use std::ffi::c_void;
use std::path::PathBuf;

use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{self, ArenaExtendStrategy};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use super::{EngineError, Runtime};

/// What computes a session whose tensors lie in a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The CPU, for a simulated GPU whose memory is the host's.
    Host,
    /// ONNX Runtime's CUDA provider.
    Cuda,
    /// ONNX Runtime's TensorRT provider, and the CUDA provider for what TensorRT does not take.
    Tensorrt,
}

/// What a provider is told.
#[derive(Clone, Debug)]
pub struct ProviderSettings {
    /// The GPU's number.
    pub gpu: u32,
    /// The driver's handle of the stream that its work goes on.
    pub stream: StreamHandle,
    /// Whether a shape that repeats is recorded once and replayed.
    pub cuda_graphs: bool,
    /// The model's input, and the smallest, usual and largest batch: TensorRT builds for these.
    pub profile: Profile,
    /// Folder for TensorRT's engines and timings.
    pub engine_cache: PathBuf,
}

/// A CUDA stream's handle. Whoever makes one keeps the stream as long as the session.
#[derive(Clone, Copy, Debug)]
pub struct StreamHandle(pub *mut c_void);

// SAFETY: a handle is a name; the driver takes it from any thread.
unsafe impl Send for StreamHandle {}
// SAFETY: as above.
unsafe impl Sync for StreamHandle {}

/// Batch sizes that TensorRT builds for.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Name of the input.
    pub input: String,
    /// Channels, height, width.
    pub image: [u32; 3],
    /// The largest batch; the engine is best for it and takes all from 1.
    pub max_batch: usize,
}

impl Profile {
    fn shape(&self, images: usize) -> String {
        let [channels, height, width] = self.image;
        format!("{}:{images}x{channels}x{height}x{width}", self.input)
    }
}

impl std::fmt::Display for Provider {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(match self {
            Self::Host => "host",
            Self::Cuda => "cuda",
            Self::Tensorrt => "tensorrt",
        })
    }
}

impl Provider {
    /// Has ONNX Runtime load it, without a model.
    pub(super) fn probe(self, runtime: &Runtime, gpu: u32) -> Result<(), ort::Error> {
        let builder = Session::builder(runtime.environment())?;
        let gpu = i32::try_from(gpu).unwrap_or(0);
        let cuda = ep::CUDA::default().with_device_id(gpu).build().error_on_failure();
        let providers = match self {
            Self::Host => return Ok(()),
            Self::Cuda => vec![cuda],
            Self::Tensorrt => {
                vec![ep::TensorRT::default().with_device_id(gpu).build().error_on_failure(), cuda]
            }
        };
        builder.with_execution_providers(providers)?;
        Ok(())
    }

    /// Has a session use it.
    ///
    /// # Errors
    /// [`EngineError::Provider`]: not in this ONNX Runtime, or without a library that it needs.
    pub(super) fn register(
        self,
        builder: SessionBuilder,
        settings: &ProviderSettings,
    ) -> Result<SessionBuilder, EngineError> {
        let gpu = i32::try_from(settings.gpu).unwrap_or(0);
        let stream = settings.stream.0.cast();
        // SAFETY: whoever made the handle keeps the stream as long as the session.
        let cuda = unsafe {
            ep::CUDA::default()
                .with_device_id(gpu)
                .with_compute_stream(stream)
                .with_cuda_graph(settings.cuda_graphs && self == Self::Cuda)
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .with_conv_max_workspace(true)
                .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
                .build()
                .error_on_failure()
        };
        let providers = match self {
            Self::Host => return Ok(builder),
            Self::Cuda => vec![cuda],
            Self::Tensorrt => {
                let folder = settings.engine_cache.display();
                let profile = &settings.profile;
                // SAFETY: as above.
                let tensorrt = unsafe {
                    ep::TensorRT::default()
                        .with_device_id(gpu)
                        .with_compute_stream(stream)
                        .with_fp16(true)
                        .with_engine_cache(true)
                        .with_engine_cache_path(&folder)
                        .with_timing_cache(true)
                        .with_timing_cache_path(&folder)
                        .with_profile_min_shapes(profile.shape(1))
                        .with_profile_opt_shapes(profile.shape(profile.max_batch))
                        .with_profile_max_shapes(profile.shape(profile.max_batch))
                        .build()
                        .error_on_failure()
                };
                vec![tensorrt, cuda]
            }
        };
        builder
            .with_execution_providers(providers)
            .map_err(|source| EngineError::Provider { provider: self, source: source.into() })
    }
}
