//! `[engine]`: device, lanes and ONNX Runtime.

use std::path::PathBuf;
use std::time::Duration;

use inference::bundle::Precision;
use inference::engine::DeviceKind;
use serde::{Deserialize, Serialize};

use super::check::{Check, millis, within};

/// Maximum of `engine.max_delay`: a longer wait for other images would take an answer's whole time.
const MAX_BATCH_DELAY: Duration = Duration::from_secs(1);

/// Device, lanes and ONNX Runtime.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// `auto`, `cpu`, `cuda` or `tensorrt`.
    pub device: DeviceKind,
    /// Lanes on the CPU; 0 is one a core. A GPU has one.
    pub lanes: usize,
    /// Images that may wait for a lane; 0 is eight a lane on the CPU, and four batches a GPU.
    pub queue: usize,
    /// Precision of the variant; the bundle's first for the device unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// libonnxruntime: the file or its folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub onnxruntime: Option<PathBuf>,
    /// Folders with libraries of NVIDIA's: the libraries themselves, or a `site-packages` with PyPI's wheels of them.
    pub library_folders: Vec<PathBuf>,
    /// Numbers of the GPUs that serve; all where none is named.
    pub gpus: Vec<u32>,
    /// Most images that a GPU computes at once.
    pub max_batch: usize,
    /// Longest that an image waits for others to be computed with it, while its GPU is busy.
    #[serde(with = "humantime_serde")]
    pub max_delay: Duration,
    /// Threads that decode for GPUs on the CPU; 0 is one a core. They are shared out among the GPUs.
    pub decode_threads: usize,
    /// Whether GPUs decode JPEGs too.
    pub nvjpeg: bool,
    /// Whether the CPU follows every code of a JPEG before a GPU decodes it: what is damaged within is refused, as on the CPU,
    /// which takes most of the time that the GPU saves.
    pub check_jpeg: bool,
    /// Whether a GPU records batches of each size once and replays them; with the CUDA provider. Off until it has been proved
    /// on a GPU: while one lane records, others must not take memory.
    pub cuda_graphs: bool,
    /// How long a lane may be at one image before it is replaced.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: DeviceKind::default(),
            lanes: 0,
            queue: 0,
            precision: None,
            onnxruntime: None,
            library_folders: Vec::new(),
            gpus: Vec::new(),
            max_batch: 64,
            max_delay: Duration::from_millis(2),
            decode_threads: 0,
            nvjpeg: true,
            check_jpeg: false,
            cuda_graphs: false,
            stall_timeout: Duration::from_secs(120),
        }
    }
}

impl EngineConfig {
    pub(super) fn validate(&self) -> Check {
        within("engine.lanes", self.lanes, 0, 1024)?;
        within("engine.queue", self.queue, 0, 65_536)?;
        within("engine.max_batch", self.max_batch, 1, 1024)?;
        within("engine.decode_threads", self.decode_threads, 0, 1024)?;
        if self.max_delay > MAX_BATCH_DELAY {
            let value = humantime::format_duration(self.max_delay);
            return Err(("engine.max_delay", format!("{value} is more than a second")));
        }
        let gpus = &self.gpus;
        if let Some((_, twice)) = gpus.iter().enumerate().find(|(at, gpu)| gpus[..*at].contains(gpu)) {
            return Err(("engine.gpus", format!("{twice} stands there twice")));
        }
        within("engine.stall_timeout (in milliseconds)", millis(self.stall_timeout), 100, 24 * 3600 * 1000)
    }
}
