//! ONNX Runtime's execution providers for GPUs and their settings.
#![allow(unsafe_code, reason = "a provider is given a stream of ours; the block says why it is sound")]

use std::ffi::c_void;
use std::path::PathBuf;

use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{self, ArenaExtendStrategy};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use super::{EngineError, Runtime};

/// The execution provider of a session whose tensors are in a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The CPU provider, on a simulated GPU whose memory is the host's. Only for tests and the test rig: the daemon never
    /// selects it ([`DeviceChoice::provider`](super::DeviceChoice::provider)).
    Host,
    /// ONNX Runtime's CUDA provider.
    Cuda,
    /// ONNX Runtime's TensorRT provider, with the CUDA provider for unsupported nodes.
    Tensorrt,
}

/// Settings of a provider.
#[derive(Clone, Debug)]
pub struct ProviderSettings {
    /// Number of the GPU.
    pub gpu: u32,
    /// The driver's handle of the stream for its work.
    pub stream: StreamHandle,
    /// Whether runs of a repeated shape are captured as CUDA graphs.
    pub cuda_graphs: bool,
    /// The model's input and the batch sizes for which TensorRT optimises.
    pub profile: Profile,
    /// Folder for TensorRT's engine and timing caches.
    pub engine_cache: PathBuf,
}

/// A CUDA stream's handle. Its creator keeps the stream alive as long as the session.
#[derive(Clone, Copy, Debug)]
pub struct StreamHandle(pub *mut c_void);

// SAFETY: a handle is only a name; the driver accepts it from any thread.
unsafe impl Send for StreamHandle {}
// SAFETY: as above.
unsafe impl Sync for StreamHandle {}

/// Batch sizes for which TensorRT optimises.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Name of the model's input.
    pub input: String,
    /// Channels, height and width of an image.
    pub image: [u32; 3],
    /// The largest batch, for which the engine is optimised; it takes all sizes from 1.
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
    /// Loads the provider into ONNX Runtime, without a model.
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

    /// Registers the provider with a session.
    ///
    /// # Errors
    /// [`EngineError::Provider`] if ONNX Runtime lacks it, or a library that it needs is missing.
    pub(super) fn register(
        self,
        builder: SessionBuilder,
        settings: &ProviderSettings,
    ) -> Result<SessionBuilder, EngineError> {
        let gpu = i32::try_from(settings.gpu).unwrap_or(0);
        let stream = settings.stream.0.cast();
        // SAFETY: the creator of the handle keeps the stream alive as long as the session.
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
