//! Settings of models on GPUs, from the configuration and the GPUs that were found.

use std::sync::Arc;

use gpu_kernels::DecodeLimits;
use gpu_kernels::cuda::{library_folders, tensorrt_version};
use inference::bundle::{Bundle, DeviceTag};
use inference::engine::{DeviceChoice, EngineCache, Provider};
use inference::lanes::gpu::{DecodeSettings, GpuSettings};
use inference::lanes::{LaneSettings, Stalls};

use crate::config::Config;

/// Queued batches per GPU where no limit is configured.
const BATCHES_PER_QUEUE: usize = 4;

/// Settings of models on the selected GPUs.
#[derive(Clone, Debug)]
pub struct GpuPlan {
    settings: GpuSettings,
    /// The configured capacity of the queue; 0 for none.
    queue: usize,
    /// Whether the CPU serves models that GPUs cannot, and is the fallback for failed GPUs.
    pub(super) cpu_may_serve: bool,
}

impl GpuPlan {
    /// The settings for a selection; `None` where the CPU serves.
    pub fn new(config: &Config, choice: &DeviceChoice, limits: DecodeLimits, cores: usize) -> Option<Self> {
        let provider = choice.provider()?;
        let engine = &config.engine;
        let folders = engine.library_folders.clone();
        let tensorrt = match provider {
            Provider::Tensorrt => tensorrt_version(&library_folders(&folders)).unwrap_or_default(),
            Provider::Cuda | Provider::Host => String::new(),
        };
        // The cache looks a GPU's name up by its number.
        let last = choice.gpus.iter().map(|gpu| gpu.number as usize).max().unwrap_or(0);
        let mut names = vec![String::new(); last + 1];
        for gpu in &choice.gpus {
            if let Some(name) = names.get_mut(gpu.number as usize) {
                *name = format!("{}-cc{}", gpu.name, gpu.capability);
            }
        }
        let threads = match engine.decode_threads {
            0 => cores,
            threads => threads,
        };
        let settings = GpuSettings {
            folders: folders.clone(),
            gpus: choice.gpus.iter().map(|gpu| gpu.number).collect(),
            provider,
            max_batch: engine.max_batch,
            max_delay: engine.max_delay,
            cuda_graphs: engine.cuda_graphs,
            engine_cache: EngineCache {
                root: config.data_dir.join("engines"),
                gpus: names,
                driver: choice.driver.clone(),
                tensorrt,
                max_batch: engine.max_batch,
            },
            decode: DecodeSettings {
                threads: (threads / choice.gpus.len().max(1)).max(1),
                nvjpeg: engine.nvjpeg,
                check_jpeg: engine.check_jpeg,
                folders: library_folders(&folders),
                limits,
                resize: 0,
                stalls: Stalls::new(engine.stall_timeout, threads),
            },
        };
        Some(Self { settings, queue: engine.queue, cpu_may_serve: choice.is_auto })
    }

    /// The bundle's tag for the provider.
    pub(super) fn tag(&self) -> DeviceTag {
        match self.settings.provider {
            Provider::Tensorrt => DeviceTag::Tensorrt,
            Provider::Cuda | Provider::Host => DeviceTag::Cuda,
        }
    }

    /// The settings for a bundle, which has the size to which images are decoded, and lanes, which have the limit of stuck threads.
    pub(super) fn settings(&self, bundle: &Bundle, stalls: &Arc<Stalls>) -> Arc<GpuSettings> {
        let mut settings = self.settings.clone();
        settings.decode.resize = bundle.preprocess().resize;
        settings.decode.stalls = Arc::clone(stalls);
        Arc::new(settings)
    }

    /// The settings of lanes on the GPUs, from those of lanes on the CPU.
    pub(super) fn lanes(&self, cpu: &LaneSettings) -> LaneSettings {
        let count = self.settings.gpus.len();
        let capacity = match self.queue {
            0 => count * self.settings.max_batch * BATCHES_PER_QUEUE,
            queue => queue,
        };
        LaneSettings { count, capacity, batch_size: self.settings.max_batch, ..cpu.clone() }
    }
}
