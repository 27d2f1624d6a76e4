//! A session whose input and output are bound to memory of a GPU, and whose work is submitted to a shared stream.
#![allow(unsafe_code, reason = "tensors are made of addresses on a GPU; each block says why it is sound")]

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{NoSelectedOutputs, RunOptions, Session};
use ort::value::TensorElementType;

use super::binding::{FixedBinding, Place};
use super::provider::{Provider, ProviderSettings};
use super::scores::Contract;
use super::session::{builder, check, takes_several};
use super::{EngineError, Runtime};
use crate::bundle::{InputType, ModelFile, Shape};

/// Runs before a shape counts as warm. With CUDA graphs ONNX Runtime captures the second and replays the third.
const WARM_RUNS: usize = 3;

/// Addresses of a slot's tensors in a GPU's memory, each with room for the largest batch.
#[derive(Clone, Copy, Debug)]
pub struct SlotMemory {
    /// Address of the input.
    pub tensor: u64,
    /// Address of the scores.
    pub scores: u64,
}

/// A session that computes batches of a few sizes in place. Owned by one thread.
pub struct BoundSession {
    bindings: Vec<Binding>,
    session: Session,
    provider: Provider,
    output: TensorElementType,
    labels: usize,
    contract: Contract,
}

struct Binding {
    slot: usize,
    images: usize,
    options: RunOptions<NoSelectedOutputs>,
    io: FixedBinding,
}

impl std::fmt::Debug for BoundSession {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "BoundSession({}, {} shapes)", self.provider, self.bindings.len())
    }
}

impl BoundSession {
    /// Loads a session. Nothing is bound yet.
    ///
    /// # Errors
    /// [`EngineError::Provider`] if the provider is not available; [`EngineError::Model`] and [`EngineError::Mismatch`] as for
    /// every session.
    pub fn load(
        runtime: &Runtime,
        model: &ModelFile,
        provider: Provider,
        settings: &ProviderSettings,
    ) -> Result<Self, EngineError> {
        let failed = |source: ort::Error| EngineError::Model { path: model.path.clone(), source };
        let mut builder = provider.register(builder(runtime, model)?, settings)?;
        let session = builder.commit_from_file(&model.path).map_err(failed)?;
        let output = check(&session, model, &[TensorElementType::Float32, TensorElementType::Float16])?;
        Ok(Self {
            bindings: Vec::new(),
            session,
            provider,
            output,
            labels: model.labels,
            contract: Contract::of(model),
        })
    }

    /// Whether the graph takes more than one image at a time.
    pub fn takes_several(&self) -> bool {
        takes_several(&self.session)
    }

    /// Whether batches of this size are bound.
    pub fn has(&self, images: usize) -> bool {
        self.bindings.iter().any(|binding| binding.images == images)
    }

    /// Bytes per image of the scores in memory.
    pub fn score_bytes(&self) -> usize {
        self.labels * if self.output == TensorElementType::Float16 { 2 } else { 4 }
    }

    /// Binds batches of these sizes in each slot, and warms each up on the current content of the memory.
    ///
    /// # Errors
    /// [`EngineError::Run`].
    ///
    /// # Safety
    /// The memory belongs to the GPU, has room for the largest batch, and outlives this session.
    pub unsafe fn bind(
        &mut self,
        model: &ModelFile,
        settings: &ProviderSettings,
        slots: &[SlotMemory],
        sizes: &[usize],
    ) -> Result<(), EngineError> {
        let (device, number) = match self.provider {
            Provider::Host => (AllocationDevice::CPU, 0),
            Provider::Cuda | Provider::Tensorrt => (AllocationDevice::CUDA, settings.gpu),
        };
        let number = i32::try_from(number).unwrap_or(0);
        let memory = MemoryInfo::new(device, number, AllocatorType::Device, MemoryType::Default)
            .map_err(EngineError::Run)?;
        // Shape by shape: a provider may plan again when the shape changes.
        for &images in sizes {
            for (slot, at) in slots.iter().enumerate() {
                let place = |shape: &Shape, address, element| {
                    let count = i64::try_from(images).unwrap_or(1);
                    let rest = shape.dims.iter().skip(1).map(|&d| i64::from(d.max(1)));
                    let dims = std::iter::once(count).chain(rest).collect();
                    Place { name: shape.name.clone(), address, dims, element }
                };
                let input_type = match model.input_type {
                    InputType::F16 => TensorElementType::Float16,
                    InputType::F32 => TensorElementType::Float32,
                };
                let input = place(&model.input, at.tensor, input_type);
                let output = place(&model.output, at.scores, self.output);
                // SAFETY: the caller vouches for memory and lifetime; the shapes are those of `images` of the largest batch.
                let io = unsafe { FixedBinding::new(&self.session, &memory, &input, &output) };
                let io = io.map_err(EngineError::Run)?;
                let options = self.options(settings, self.bindings.len() + 1)?;
                self.bindings.push(Binding { slot, images, options, io });
            }
        }
        for binding in 0..self.bindings.len() {
            for _ in 0..WARM_RUNS {
                self.run_binding(binding)?;
            }
        }
        Ok(())
    }

    /// Options of a run: it does not wait for the GPU, and each shape in each slot has its own CUDA graph where graphs are
    /// used.
    fn options(
        &self,
        settings: &ProviderSettings,
        graph: usize,
    ) -> Result<RunOptions<NoSelectedOutputs>, EngineError> {
        let mut options = RunOptions::new().map_err(EngineError::Run)?;
        if self.provider != Provider::Host {
            options.disable_device_sync().map_err(EngineError::Run)?;
            if settings.cuda_graphs {
                options.set("gpu_graph_id", graph.to_string()).map_err(EngineError::Run)?;
            }
        }
        Ok(options)
    }

    /// Submits a run for `images` images of a slot, one of the bound sizes, to the stream. On the host it has completed when
    /// this returns.
    ///
    /// # Errors
    /// [`EngineError::Run`], also for a size that was not bound.
    pub fn run(&mut self, slot: usize, images: usize) -> Result<(), EngineError> {
        let found = self.bindings.iter().position(|b| (b.slot, b.images) == (slot, images));
        let unbound = || EngineError::Run(ort::Error::new(format!("no batch of {images} images is bound")));
        self.run_binding(found.ok_or_else(unbound)?)
    }

    fn run_binding(&mut self, binding: usize) -> Result<(), EngineError> {
        let Binding { io, options, .. } = &self.bindings[binding];
        io.run(&mut self.session, options).map_err(EngineError::Run)
    }

    /// The scores of one image from their bytes in memory.
    ///
    /// # Errors
    /// As [`Classifier::run`](super::Classifier::run), for invalid scores.
    pub fn scores(&self, bytes: &[u8]) -> Result<Vec<f32>, EngineError> {
        let mut scores: Vec<f32> = if self.output == TensorElementType::Float16 {
            bytes.as_chunks().0.iter().map(|&b| half::f16::from_ne_bytes(b).to_f32()).collect()
        } else {
            bytes.as_chunks().0.iter().map(|&b| f32::from_ne_bytes(b)).collect()
        };
        self.contract.finish(&mut scores)?;
        Ok(scores)
    }
}
