//! Building a GPU's device: engine and decoders; and the better engine that is built while the first serves.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_kernels::cuda::{Device, GpuError, PinnedPool};
use gpu_kernels::preprocess::cuda::Stager;

use super::device::GpuDevice;
use super::{DecodeSettings, GpuEngine};
use crate::bundle::{Bundle, ModelFile};
use crate::engine::{EngineCache, EngineError, Provider, Runtime};
use crate::lanes::{BatchDevice, BatchFactory, Built};

/// Memory for decoded images, of the GPU and of the host: what a 4K frame of a full batch takes in planes, and some.
pub(super) const IMAGE_BYTES: usize = 1 << 30;
/// CUresult.
const OUT_OF_MEMORY: i32 = 2;

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
        if settings.provider != Provider::Tensorrt {
            return Ok(Built { device: build_with(settings.provider)?, better: None });
        }
        if settings.engine_cache.is_built(&model, gpu) {
            match build_with(Provider::Tensorrt) {
                Ok(device) => return Ok(Built { device, better: None }),
                Err(error) => {
                    tracing::error!(gpu, %error, "TensorRT's engine on disk can't be used; it is built anew");
                    settings.engine_cache.forget(&model, gpu);
                }
            }
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

/// Builds a device on one GPU, warms it and runs the bundle's golden cases on it.
///
/// # Errors
/// [`EngineError`]; what the GPU is at fault for is [`EngineError::Gpu`], whatever the engine said of it.
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
        // Not every network can be recorded. What else is wrong shows again without.
        Err(error @ (EngineError::Run(_) | EngineError::Model { .. } | EngineError::Golden { .. }))
            if graphs =>
        {
            tracing::warn!(gpu, %error, "the engine can't replay CUDA graphs of this model; it runs without");
            build(false)
        }
        built => built,
    };
    built.map_err(|error| diagnose(&device, error))
}

/// Tells the GPU's faults from the model's. A GPU that is lost is marked so, for all who use it.
fn diagnose(device: &Device, error: EngineError) -> EngineError {
    if let Err(gpu) = device.synchronize() {
        if gpu.is_lost() {
            device.lost();
        }
        return gpu.into();
    }
    let said = error.to_string();
    if said.contains("out of memory") && !matches!(error, EngineError::Gpu(_)) {
        tracing::error!(%error, "the engine finds no memory on the GPU");
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
