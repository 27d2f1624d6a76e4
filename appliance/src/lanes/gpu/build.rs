//! Building a GPU's device: engine and decoders; and the better engine that is built while the first serves.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_kernels::cuda::PinnedPool;
use gpu_kernels::preprocess::cuda::Stager;

use super::device::GpuDevice;
use super::{DecodeSettings, GpuEngine};
use crate::engine::{EngineCache, EngineError, Provider, Runtime};
use crate::lanes::{BatchDevice, BatchFactory, Built};
use crate::models::{Bundle, ModelFile};

/// Memory for decoded images, of the GPU and of the host: what a 4K frame of a full batch takes in planes, and some.
pub(super) const IMAGE_BYTES: usize = 1 << 30;

/// How a model runs on GPUs.
#[derive(Clone, Debug)]
pub struct GpuSettings {
    /// Where the driver's library may be.
    pub folders: Vec<PathBuf>,
    /// The GPUs' numbers, one lane each.
    pub gpus: Vec<u32>,
    /// What computes.
    pub provider: Provider,
    /// Most images of a batch.
    pub max_batch: usize,
    /// Longest that an image waits for others while the GPU is busy.
    pub max_delay: Duration,
    /// Whether batches of a size that repeats are recorded and replayed.
    pub cuda_graphs: bool,
    /// Where TensorRT's engines are kept.
    pub engine_cache: EngineCache,
    /// How images are decoded.
    pub decode: DecodeSettings,
}

/// Builds the devices of a model's lanes, the lane's number being the place of its GPU in the settings. With TensorRT a lane
/// whose engine has to be built first serves with CUDA until it is.
pub fn gpu_factory(
    runtime: &Runtime,
    bundle: &Arc<Bundle>,
    model: &ModelFile,
    settings: &Arc<GpuSettings>,
) -> BatchFactory {
    let (runtime, bundle) = (runtime.clone(), Arc::clone(bundle));
    let (model, settings) = (model.clone(), Arc::clone(settings));
    Arc::new(move |lane| {
        let gpu = settings.gpus.get(lane).copied().unwrap_or(0);
        let build_with = |provider| build(&runtime, &bundle, &model, &settings, (gpu, provider));
        if settings.provider != Provider::Tensorrt || settings.engine_cache.is_built(&model, gpu) {
            return Ok(Built { device: build_with(settings.provider)?, better: None });
        }
        let device = build_with(Provider::Cuda)?;
        let (runtime, bundle) = (runtime.clone(), Arc::clone(&bundle));
        let (model, settings) = (model.clone(), Arc::clone(&settings));
        let better = move || {
            let began = Instant::now();
            tracing::info!(gpu, "TensorRT builds its engine; CUDA serves meanwhile");
            let device = build(&runtime, &bundle, &model, &settings, (gpu, Provider::Tensorrt))?;
            settings.engine_cache.set_built(&model, gpu);
            tracing::info!(gpu, seconds = began.elapsed().as_secs(), "TensorRT has built its engine");
            Ok(device)
        };
        Ok(Built { device, better: Some(Box::new(better)) })
    })
}

/// Builds a device on one GPU and warms it.
///
/// # Errors
/// [`EngineError`].
pub fn build(
    runtime: &Runtime,
    bundle: &Bundle,
    model: &ModelFile,
    settings: &GpuSettings,
    (gpu, provider): (u32, Provider),
) -> Result<Box<dyn BatchDevice>, EngineError> {
    let graphs = settings.cuda_graphs && provider != Provider::Host;
    let built = build_once(runtime, bundle, model, settings, (gpu, provider, graphs));
    match built {
        // Not every network can be recorded. What else is wrong shows again without.
        Err(error @ EngineError::Run(_)) if graphs => {
            tracing::warn!(gpu, %error, "the engine can't replay CUDA graphs of this model; it runs without");
            build_once(runtime, bundle, model, settings, (gpu, provider, false))
        }
        built => built,
    }
}

fn build_once(
    runtime: &Runtime,
    bundle: &Bundle,
    model: &ModelFile,
    settings: &GpuSettings,
    choice: (u32, Provider, bool),
) -> Result<Box<dyn BatchDevice>, EngineError> {
    let engine = GpuEngine::build(runtime, bundle, model, settings, choice)?;
    let stager = Stager::new(PinnedPool::new(engine.batches().device(), IMAGE_BYTES));
    Ok(Box::new(GpuDevice::new(engine, &stager, &settings.decode)?))
}
