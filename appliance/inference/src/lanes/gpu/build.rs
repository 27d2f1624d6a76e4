//! Builds the device of a lane on a GPU: engine and decoders, and the TensorRT engine that replaces the first one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_kernels::cuda::{Device, GpuError, PinnedPool};
use gpu_kernels::preprocess::cuda::Stager;

use super::device::GpuDevice;
use super::{BatchDevice, BatchFactory, Built, DecodeSettings, GpuEngine};
use crate::bundle::{Bundle, ModelFile};
use crate::engine::{EngineCache, EngineError, Provider, Runtime};

/// Memory for decoded images, on the GPU and in pinned memory: 4K frames of a full batch in planes, with some reserve.
pub(super) const IMAGE_BYTES: usize = 1 << 30;
/// CUDA_ERROR_OUT_OF_MEMORY of CUresult.
const OUT_OF_MEMORY: i32 = 2;

/// How a model runs on GPUs.
#[derive(Clone, Debug)]
pub struct GpuSettings {
    /// Folders in which the driver's library is searched for.
    pub folders: Vec<PathBuf>,
    /// GPU numbers, one lane per GPU.
    pub gpus: Vec<u32>,
    /// The execution provider.
    pub provider: Provider,
    /// Largest batch.
    pub max_batch: usize,
    /// Longest time that an image waits for others while the GPU is busy.
    pub max_delay: Duration,
    /// Whether runs of a repeated batch size are captured as CUDA graphs.
    pub cuda_graphs: bool,
    /// Where TensorRT's engines are stored.
    pub engine_cache: EngineCache,
    /// How images are decoded.
    pub decode: DecodeSettings,
}

/// The factory of a model's devices; the lane's number is the index of its GPU in the settings. With TensorRT, a lane whose
/// engine is not cached serves with CUDA until the engine is built.
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
        if settings.provider != Provider::Tensorrt {
            return Ok(Built { device: build_with(settings.provider)?, upgrade: None });
        }
        if settings.engine_cache.is_built(&model, gpu) {
            match build_with(Provider::Tensorrt) {
                Ok(device) => return Ok(Built { device, upgrade: None }),
                Err(error) => {
                    tracing::error!(gpu, %error, "cannot use the cached TensorRT engine; rebuilding it");
                    settings.engine_cache.forget(&model, gpu);
                }
            }
        }
        let device = build_with(Provider::Cuda)?;
        let (runtime, bundle) = (runtime.clone(), Arc::clone(&bundle));
        let (model, settings) = (model.clone(), Arc::clone(&settings));
        let upgrade = move || {
            let began = Instant::now();
            tracing::info!(gpu, "building the TensorRT engine; serving with CUDA meanwhile");
            let device = build(&runtime, &bundle, &model, &settings, (gpu, Provider::Tensorrt))?;
            settings.engine_cache.set_built(&model, gpu);
            tracing::info!(gpu, seconds = began.elapsed().as_secs(), "TensorRT engine built");
            Ok(device)
        };
        Ok(Built { device, upgrade: Some(Box::new(upgrade)) })
    })
}

/// Builds a device on one GPU, warms it up and runs the bundle's golden cases on it.
///
/// # Errors
/// [`EngineError`]; faults of the GPU are reported as [`EngineError::Gpu`], whatever the engine's error.
pub fn build(
    runtime: &Runtime,
    bundle: &Bundle,
    model: &ModelFile,
    settings: &GpuSettings,
    (gpu, provider): (u32, Provider),
) -> Result<Box<dyn BatchDevice>, EngineError> {
    // TensorRT's provider in ONNX Runtime replays one graph for all shapes.
    let graphs = settings.cuda_graphs && provider == Provider::Cuda;
    let device = Device::open(&settings.folders, gpu)?;
    let build = |graphs| {
        let mut built = build_once(runtime, bundle, model, settings, (gpu, provider, graphs))?;
        super::golden::check(bundle, built.as_mut())?;
        Ok(built)
    };
    let built = match build(graphs) {
        // Not every network can be captured. Any other cause occurs again without graphs.
        Err(error @ (EngineError::Run(_) | EngineError::Model { .. } | EngineError::Golden { .. }))
            if graphs =>
        {
            tracing::warn!(gpu, %error, "cannot capture CUDA graphs of this model; running without");
            build(false)
        }
        built => built,
    };
    built.map_err(|error| diagnose(&device, error))
}

/// Distinguishes faults of the GPU from those of the model. A lost GPU is marked as such for all its users.
fn diagnose(device: &Device, error: EngineError) -> EngineError {
    if let Err(gpu) = device.synchronize() {
        if gpu.is_lost() {
            device.lost();
        }
        return gpu.into();
    }
    let said = error.to_string();
    if said.contains("out of memory") && !matches!(error, EngineError::Gpu(_)) {
        tracing::error!(%error, "the engine is out of memory on the GPU");
        return GpuError::Refused { call: "the engine's allocation", code: OUT_OF_MEMORY }.into();
    }
    error
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
