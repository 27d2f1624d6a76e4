//! Complete lanes on simulated GPUs: encoded bytes in, scores out, with the real kernel's arithmetic, a simulated driver and
//! nvJPEG, and ONNX Runtime's CPU provider in place of the GPU's.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests fail by panics")]

mod answers;
mod failures;
#[path = "../../../../gpu-kernels/tests/nvjpeg/simulated.rs"]
#[allow(dead_code, reason = "another target uses more of it")]
mod nvjpeg;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use inference::bundle::{Bundle, DeviceTag, ModelFile, Precision};
use inference::engine::{EngineCache, Provider, Runtime};
use inference::lanes::cpu::CpuPipeline;
use inference::lanes::gpu::{DecodeSettings, GpuSettings, gpu_factory};
use inference::lanes::{
    Classified, CpuFallback, LaneError, LaneObserver, LaneReply, LaneSettings, Lanes, SkipReason, Stalls,
};
use parking_lot::Mutex;
use test_services::gpu::{SimulatedDriver, simulated_driver};
use tokio::sync::oneshot::Receiver as Answer;

const LONG: Duration = Duration::from_secs(60);

/// A bundle, one of its variants, and the library that runs it.
struct Model {
    runtime: Runtime,
    bundle: Arc<Bundle>,
    file: ModelFile,
}

impl Model {
    fn open(device: DeviceTag, precision: Precision) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fish/1");
        let bundle = Bundle::open(&dir).unwrap();
        let file = bundle.variant(device, Some(precision)).unwrap();
        Self { runtime: Runtime::load(None).unwrap(), bundle: Arc::new(bundle), file }
    }

    fn cpu(&self) -> CpuPipeline {
        let limits = gpu_kernels::DecodeLimits::default();
        CpuPipeline::new(&self.runtime, &self.bundle, &self.file, limits, 1).unwrap()
    }

    fn fallback(&self) -> CpuFallback {
        let (runtime, bundle, file) = (self.runtime.clone(), Arc::clone(&self.bundle), self.file.clone());
        let limits = gpu_kernels::DecodeLimits::default();
        CpuFallback {
            lanes: LaneSettings::new(2, 1000),
            factory: Arc::new(move |_| Ok(Box::new(CpuPipeline::new(&runtime, &bundle, &file, limits, 1)?))),
        }
    }
}

fn settings(driver: &SimulatedDriver, nvjpeg: Option<&nvjpeg::Simulated>, gpus: &[u32]) -> GpuSettings {
    let mut folders = driver.folders();
    folders.extend(nvjpeg.map(nvjpeg::Simulated::folders).unwrap_or_default());
    GpuSettings {
        folders: folders.clone(),
        gpus: gpus.to_vec(),
        provider: Provider::Host,
        max_batch: 4,
        max_delay: Duration::from_millis(2),
        cuda_graphs: true,
        engine_cache: EngineCache::default(),
        decode: DecodeSettings {
            threads: 1,
            nvjpeg: nvjpeg.is_some(),
            check_jpeg: false,
            folders,
            limits: gpu_kernels::DecodeLimits::default(),
            resize: 256,
            stalls: Stalls::new(LONG, 1),
        },
    }
}

#[derive(Default)]
struct Seen {
    failures: Mutex<Vec<(&'static str, usize)>>,
    runs: Mutex<Vec<usize>>,
    restarted: AtomicUsize,
}

impl LaneObserver for Seen {
    fn computed(&self, _: usize, _: Duration, _: Duration, _: &Result<Classified, LaneError>) {}
    fn ran(&self, images: usize) {
        self.runs.lock().push(images);
    }
    fn skipped(&self, _: usize, _: SkipReason) {}
    fn restarted(&self, _: usize) {
        self.restarted.fetch_add(1, Ordering::SeqCst);
    }
    fn device_failed(&self, _: usize, kind: &'static str, retried: usize) {
        self.failures.lock().push((kind, retried));
    }
}

fn start(model: &Model, settings: GpuSettings, fallback: Option<CpuFallback>) -> (Lanes, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let lanes = LaneSettings::new(settings.gpus.len(), 1000);
    let factory = gpu_factory(&model.runtime, &model.bundle, &model.file, &Arc::new(settings));
    let lanes = Lanes::start_batches(&lanes, Vec::new(), &factory, fallback, seen.clone()).unwrap();
    (lanes, seen)
}

fn submit(lanes: &Lanes, images: &[Bytes]) -> Vec<Answer<LaneReply>> {
    images.iter().map(|image| lanes.submit(image.clone(), Instant::now() + LONG).unwrap()).collect()
}

fn best(scores: &[f32]) -> usize {
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap()
}

/// The golden pictures of the bundle, and photographs where there is a folder of them.
fn pictures(model: &Model) -> Vec<Bytes> {
    let golden = model.bundle.golden_cases().unwrap().into_iter().map(|case| Bytes::from(case.bytes));
    let mut pictures: Vec<Bytes> = golden.collect();
    if let Some(folder) = std::env::var_os("WEIR_PHOTOS") {
        let mut files: Vec<PathBuf> = walk(Path::new(&folder));
        files.sort();
        assert!(!files.is_empty(), "WEIR_PHOTOS names a folder without photos");
        pictures.extend(files.iter().map(|file| Bytes::from(std::fs::read(file).unwrap())));
    }
    pictures
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_photo =
        |path: &PathBuf| path.extension().is_some_and(|e| e == "jpg" || e == "jpeg" || e == "JPEG");
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).filter(is_photo).collect()
}
