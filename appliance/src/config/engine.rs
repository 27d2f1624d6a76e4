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
    /// Lanes on the CPU; 0 is one per core. A GPU has one.
    pub lanes: usize,
    /// Capacity of the queue in images; 0 is eight per lane on the CPU, and four batches per GPU.
    pub queue: usize,
    /// Precision of the variant; the bundle's first one for the device unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// libonnxruntime: the file or its folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub onnxruntime: Option<PathBuf>,
    /// Folders with NVIDIA's libraries, or a `site-packages` folder with PyPI's wheels of them.
    pub library_folders: Vec<PathBuf>,
    /// Numbers of the GPUs that serve; all if empty.
    pub gpus: Vec<u32>,
    /// Maximum images of a batch on a GPU.
    pub max_batch: usize,
    /// Maximum time that an image waits for a batch to fill while its GPU is busy.
    #[serde(with = "humantime_serde")]
    pub max_delay: Duration,
    /// Decoder threads on the CPU for all GPUs together; 0 is one per core.
    pub decode_threads: usize,
    /// Whether GPUs decode JPEGs too.
    pub nvjpeg: bool,
    /// Whether the CPU checks every code of a JPEG before a GPU decodes it: damaged data is refused, as on the CPU, at the cost of
    /// most of the time that the GPU saves.
    pub check_jpeg: bool,
    /// Whether CUDA graphs are used (CUDA provider): batches of each size are recorded once and replayed. Off until it has been
    /// proved on a GPU: while one lane records, others must not allocate memory.
    pub cuda_graphs: bool,
    /// Maximum time of a lane per image; after it the lane is replaced.
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
