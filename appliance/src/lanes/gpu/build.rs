//! Building a GPU's device: context, session, memory, warm-up; and the better engine that is built while the first serves.
#![allow(unsafe_code, reason = "the session is bound to memory of the GPU; the block says why it is sound")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_kernels::cuda::{Device, PinnedPool};
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
    (gpu, provider, cuda_graphs): (u32, Provider, bool),
) -> Result<Box<dyn BatchDevice>, EngineError> {
    let spec = bundle.preprocess();
    let device = Device::open(&settings.folders, gpu)?;
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
    let batches = Batches::new(&device, stream, batches)?;
    let memory = |slot| SlotMemory { tensor: batches.tensor(slot), scores: batches.scores(slot) };
    let slots: Vec<SlotMemory> = (0..SLOTS).map(memory).collect();
    // SAFETY: each slot has room for the largest batch in both, and the device drops the session before the batches.
    unsafe { session.bind(model, &provider_settings, &slots, batching.sizes())? };
    device.synchronize()?;
    let stager = Stager::new(PinnedPool::new(&device, IMAGE_BYTES));
    let on_host = provider == Provider::Host;
    let built = GpuDevice::new(session, batches, batching, &stager, &settings.decode, (SLOTS, on_host))?;
    Ok(Box::new(built))
}
