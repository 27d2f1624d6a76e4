//! An engine bound to memory of a GPU: context, sessions, memory for batches, warm-up.
#![allow(unsafe_code, reason = "the session is bound to memory of the GPU; the block says why it is sound")]

use std::time::{Duration, Instant};

use gpu_kernels::cuda::Device;
use gpu_kernels::preprocess::Element;
use gpu_kernels::preprocess::cuda::{BatchSettings, Batches};

use super::build::IMAGE_BYTES;
use super::{Batching, GpuSettings};
use crate::bundle::{Bundle, InputType, ModelFile};
use crate::engine::{
    BoundSession, EngineError, Profile, Provider, ProviderSettings, Runtime, SlotMemory, StreamHandle,
};

/// Batches in flight: one computed, one prepared.
const SLOTS: usize = 2;
/// The fraction of the free memory for images, before the engine takes its own.
const SHARE_OF_FREE: u64 = 4;

/// A model on one GPU, ready to compute batches. Owned by one thread.
#[derive(Debug)]
pub struct GpuEngine {
    // In drop order: the sessions are bound to the batches' memory.
    /// Each for some of the batch sizes.
    pub(super) sessions: Vec<BoundSession>,
    pub(super) batches: Batches,
    pub(super) batching: Batching,
    pub(super) slots: usize,
    /// Whether the engine computes on the host, which must wait for the stream.
    pub(super) on_host: bool,
}

impl GpuEngine {
    /// Loads the model with a provider on this GPU, with or without CUDA graphs, and warms up every batch size. TensorRT
    /// builds its engine first, unless it is cached.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn build(
        runtime: &Runtime,
        bundle: &Bundle,
        model: &ModelFile,
        settings: &GpuSettings,
        (gpu, provider, cuda_graphs): (u32, Provider, bool),
    ) -> Result<Self, EngineError> {
        let spec = bundle.preprocess();
        let device = Device::open(&settings.folders, gpu)?;
        // Before the session, so that it is dropped after it, also on errors.
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
        let load = || BoundSession::load(runtime, model, provider, &provider_settings);
        let session = load()?;
        if !session.takes_several() {
            max_batch = 1;
        }
        // ONNX Runtime's CUDA provider plans each convolution again whenever the shape changes, which takes longer than many
        // batches: so each size has a session of its own.
        let (batching, one_each) = match provider {
            Provider::Cuda | Provider::Host => {
                (Batching::coarsely_up_to(max_batch, settings.max_delay), true)
            }
            Provider::Tensorrt => (Batching::up_to(max_batch, settings.max_delay), false),
        };
        let batching =
            batching.map_err(|error| EngineError::Decoder(format!("engine.max_batch: {error}")))?;
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
        let batches = Batches::new(&device, stream.clone(), batches)?;
        let memory = |slot| SlotMemory { tensor: batches.tensor(slot), scores: batches.scores(slot) };
        let slots: Vec<SlotMemory> = (0..SLOTS).map(memory).collect();
        let sizes = batching.sizes();
        let groups: Vec<&[usize]> = if one_each { sizes.chunks(1).collect() } else { vec![sizes] };
        let (mut sessions, mut next) = (Vec::with_capacity(groups.len()), Some(session));
        let mut bind_all = || {
            for &group in &groups {
                let session = match next.take() {
                    Some(session) => session,
                    None => load()?,
                };
                sessions.push(session);
                if let Some(session) = sessions.last_mut() {
                    // SAFETY: each slot has room for the largest batch in both, and the device drops the sessions before the batches.
                    unsafe { session.bind(model, &provider_settings, &slots, group)? };
                }
            }
            Ok(device.synchronize()?)
        };
        if let Err(error) = bind_all() {
            // The sessions still use that memory, or have captured graphs of it.
            drop(sessions);
            return Err(error);
        }
        let on_host = provider == Provider::Host;
        Ok(Self { sessions, batches, batching, slots: SLOTS, on_host })
    }

    /// Batch sizes of the engine, in ascending order.
    pub fn sizes(&self) -> &[usize] {
        self.batching.sizes()
    }

    /// Computes `batches` batches of exactly `images` images, one of [`GpuEngine::sizes`], with the current content of the
    /// memory, and waits for them. Returns the total time.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn run(&mut self, images: usize, batches: usize) -> Result<Duration, EngineError> {
        self.batches.stream().synchronize()?;
        let began = Instant::now();
        for batch in 0..batches {
            run(&mut self.sessions, batch % self.slots, images)?;
        }
        self.batches.stream().synchronize()?;
        Ok(began.elapsed())
    }

    pub(super) fn batches(&self) -> &Batches {
        &self.batches
    }
}

/// Submits a run for this many images of a slot to the stream.
pub(super) fn run(sessions: &mut [BoundSession], slot: usize, images: usize) -> Result<(), EngineError> {
    let session = sessions.iter_mut().find(|session| session.has(images));
    let unbound = || EngineError::Run(ort::Error::new(format!("no batch of {images} images is bound")));
    session.ok_or_else(unbound)?.run(slot, images)
}
