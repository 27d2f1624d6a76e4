//! Building a GPU's device: context, session, memory, warm-up; and the better engine that is built while the first serves.
#![allow(unsafe_code, reason = "the session is bound to memory of the GPU; the block says why it is sound")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_kernels::cuda::{Device, GpuError, PinnedPool};
use gpu_kernels::preprocess::Element;
use gpu_kernels::preprocess::cuda::{BatchSettings, Batches, Stager};

use super::DecodeSettings;
use super::device::GpuDevice;
use crate::engine::{
    BoundSession, EngineCache, EngineError, Profile, Provider, ProviderSettings, Runtime, SlotMemory,
    StreamHandle,
};
use crate::lanes::{BatchDevice, BatchFactory, Batching, Built};
use crate::models::{Bundle, InputType, ModelFile};

/// Batches under way at once: one computed, one prepared.
const SLOTS: usize = 2;
/// Memory for decoded images, of the GPU and of the host: what a 4K frame of a full batch takes in planes, and some.
const IMAGE_BYTES: usize = 1 << 30;
/// CUresult.
const OUT_OF_MEMORY: i32 = 2;
/// Images get no more than this part of the memory that is free before the engine takes its own.
const SHARE_OF_FREE: u64 = 4;

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
        let mut built = build_once(runtime, bundle, model, settings, &device, (provider, graphs))?;
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
    device: &Device,
    (provider, cuda_graphs): (Provider, bool),
) -> Result<Box<dyn BatchDevice>, EngineError> {
    let spec = bundle.preprocess();
    let gpu = device.gpu().number;
    // Before the session, so that it goes after it whatever fails.
    let stream = device.stream()?;
    let mut max_batch = settings.max_batch;
    let provider_settings = ProviderSettings {
        gpu,
        stream: StreamHandle(stream.raw()),
        cuda_graphs,
        profile: Profile { input: model.input.name.clone(), image: [3, spec.crop, spec.crop], max_batch },
        engine_cache: settings.engine_cache.folder(model, gpu),
    };
    if provider == Provider::Tensorrt {
        let folder = &provider_settings.engine_cache;
        let failed = |source| EngineError::EngineCache { path: folder.clone(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut session = BoundSession::load(runtime, model, provider, &provider_settings)?;
    if !session.takes_several() {
        max_batch = 1;
    }
    let batching = Batching::up_to(max_batch, settings.max_delay)
        .map_err(|error| EngineError::Decoder(format!("engine.max_batch: {error}")))?;
    let free = device.memory()?.0 / SHARE_OF_FREE;
    let image_bytes = IMAGE_BYTES.min(usize::try_from(free).unwrap_or(usize::MAX));
    let batches = BatchSettings {
        spec: spec.clone(),
        element: match model.input_type {
            InputType::F32 => Element::F32,
            InputType::F16 => Element::F16,
        },
        max_batch,
        score_bytes: session.score_bytes(),
        slots: SLOTS,
        image_bytes,
    };
    let batches = Batches::new(device, stream.clone(), batches)?;
    let memory = |slot| SlotMemory { tensor: batches.tensor(slot), scores: batches.scores(slot) };
    let slots: Vec<SlotMemory> = (0..SLOTS).map(memory).collect();
    // SAFETY: each slot has room for the largest batch in both, and the device drops the session before the batches.
    let bound = unsafe { session.bind(model, &provider_settings, &slots, batching.sizes()) };
    if let Err(error) = bound.and_then(|()| Ok(device.synchronize()?)) {
        // It still has work on that memory, or graphs of it.
        drop(session);
        return Err(error);
    }
    let stager = Stager::new(PinnedPool::new(device, IMAGE_BYTES));
    let on_host = provider == Provider::Host;
    let built = GpuDevice::new(batches, session, batching, &stager, &settings.decode, (SLOTS, on_host))?;
    Ok(Box::new(built))
}
