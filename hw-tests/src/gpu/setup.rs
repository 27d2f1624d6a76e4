//! Environment of the sections: the GPU, its libraries, the bundle, ONNX Runtime, and results of earlier sections.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use gpu_kernels::DecodeLimits;
use gpu_kernels::cuda::{
    Device, Driver, Gpu, GpuReading, LIBRARIES, LibraryUse, find_library, library_folders,
};
use inference::bundle::{Bundle, DeviceTag, ModelFile, find_bundle};
use inference::engine::{EngineCache, LIBRARY_NAME, Provider, Runtime, library_candidates};
use inference::lanes::Stalls;
use inference::lanes::gpu::{DecodeSettings, GpuSettings};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Args, Plan};
use crate::frames::{self, Frame, Size};
use crate::process::machine;

/// Longest time that an image waits for a batch to fill.
const MAX_DELAY: Duration = Duration::from_millis(2);
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

/// The suite's environment.
pub(super) struct Setup {
    pub(super) args: Args,
    pub(super) driver: Driver,
    pub(super) gpu: Gpu,
    pub(super) simulated: bool,
    pub(super) plan: Plan,
    /// TensorRT's engines; removed with the suite.
    engines: TempDir,
    found: Mutex<Found>,
    frames: Mutex<BTreeMap<&'static str, Frames>>,
}

/// Frames of one size.
pub(super) type Frames = Arc<[Frame]>;

/// Results that later sections compare with.
#[derive(Default)]
pub(super) struct Found {
    /// Decoders at once on 1080p frames, images per second.
    pub(super) decode_1080p: Option<f64>,
    /// The network alone on its largest batch, images per second by provider.
    pub(super) engine: BTreeMap<String, f64>,
    /// The GPU's readings before the first section, and every fifth of a second during `end_to_end`.
    pub(super) before: Option<Result<GpuReading, String>>,
    pub(super) during: Vec<GpuReading>,
}

/// A bundle's variant for a provider.
pub(super) struct Model {
    pub(super) runtime: Runtime,
    pub(super) bundle: Arc<Bundle>,
    pub(super) file: ModelFile,
}

impl Setup {
    pub(super) fn new(args: Args, driver: Driver, gpu: Gpu, plan: Plan) -> anyhow::Result<Self> {
        let before = Some(super::nvml::read(&args.folders, gpu.number));
        let found = Mutex::new(Found { before, ..Found::default() });
        let simulated = gpu.name.starts_with("Simulated");
        Ok(Self {
            args,
            driver,
            simulated,
            gpu,
            plan,
            engines: tempfile::tempdir()?,
            found,
            frames: Mutex::default(),
        })
    }

    pub(super) fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames of a size, rendered on first use.
    pub(super) fn frames(&self, size: Size) -> anyhow::Result<Frames> {
        let mut rendered = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(frames) = rendered.get(size.name()) {
            return Ok(Arc::clone(frames));
        }
        let frames: Frames = frames::render(size, size.bench_count().min(self.plan.frames))?.into();
        rendered.insert(size.name(), Arc::clone(&frames));
        Ok(frames)
    }

    pub(super) fn device(&self) -> anyhow::Result<Device> {
        Ok(Device::open(&self.args.folders, self.gpu.number)?)
    }

    /// Threads that decode on the CPU: all cores.
    pub(super) fn cores(&self) -> usize {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }

    /// ONNX Runtime in one of the given folders; `None` to use the default search.
    pub(super) fn onnxruntime(&self) -> Option<PathBuf> {
        let folders = library_folders(&self.args.folders);
        let given = |folder: &&PathBuf| self.args.folders.iter().any(|given| folder.starts_with(given));
        folders.iter().filter(given).find_map(|folder| {
            let named = |name: &str| name == LIBRARY_NAME || name.starts_with(&format!("{LIBRARY_NAME}."));
            let files = std::fs::read_dir(folder).ok()?.flatten();
            let mut found: Vec<PathBuf> = files
                .filter(|file| file.file_name().to_str().is_some_and(named))
                .map(|file| file.path())
                .collect();
            found.sort();
            found.into_iter().next()
        })
    }

    pub(super) fn bundle(&self) -> anyhow::Result<Arc<Bundle>> {
        Ok(Arc::new(Bundle::open(&find_bundle(self.args.bundle.as_deref())?)?))
    }

    /// The bundle's model for a device.
    pub(super) fn model(&self, tag: DeviceTag) -> anyhow::Result<Model> {
        let bundle = self.bundle()?;
        let file = bundle.variant(tag, None)?;
        Ok(Model { runtime: Runtime::load(self.onnxruntime().as_deref())?, bundle, file })
    }

    /// The bundle's model for a provider; the host's is the CPU's.
    pub(super) fn model_for(&self, provider: Provider) -> anyhow::Result<Model> {
        self.model(match provider {
            Provider::Host => DeviceTag::Cpu,
            Provider::Cuda => DeviceTag::Cuda,
            Provider::Tensorrt => DeviceTag::Tensorrt,
        })
    }

    /// The selected providers, by default those whose library is found.
    pub(super) fn providers(&self) -> anyhow::Result<Vec<Provider>> {
        if !self.args.providers.is_empty() {
            return Ok(self.args.providers.iter().map(|&name| name.into()).collect());
        }
        if self.simulated {
            return Ok(vec![Provider::Host]);
        }
        let mut folders = library_folders(&self.args.folders);
        // ONNX Runtime searches its providers in its own folder.
        for (library, _) in library_candidates(self.onnxruntime().as_deref()) {
            folders
                .extend(library.canonicalize().ok().and_then(|library| Some(library.parent()?.to_owned())));
        }
        let here = |wanted| {
            let mut needed = LIBRARIES.iter().filter(|library| library.used_for == wanted);
            needed.all(|library| find_library(library.name, &folders).is_some())
        };
        let cuda = here(LibraryUse::Cuda).then_some(Provider::Cuda);
        let tensorrt = cuda.and(here(LibraryUse::Tensorrt).then_some(Provider::Tensorrt));
        let all: Vec<Provider> = cuda.into_iter().chain(tensorrt).collect();
        let missing = LIBRARIES.iter().filter(|library| library.used_for == LibraryUse::Cuda);
        let missing = missing.filter(|library| find_library(library.name, &folders).is_none());
        let missing: Vec<String> =
            missing.map(|library| format!("{} ({})", library.name, library.install)).collect();
        ensure!(
            !all.is_empty(),
            "ONNX Runtime's CUDA provider can't be had; missing: {}",
            missing.join(", ")
        );
        Ok(all)
    }

    /// Settings of a lane.
    pub(super) fn settings(&self, provider: Provider) -> anyhow::Result<GpuSettings> {
        let folders = library_folders(&self.args.folders);
        let engine_cache = EngineCache {
            root: self.engines.path().to_owned(),
            gpus: self.driver.gpus.iter().map(|gpu| gpu.name.clone()).collect(),
            driver: self.driver.version.to_string(),
            tensorrt: "here".into(),
            max_batch: self.plan.max_batch,
        };
        Ok(GpuSettings {
            folders: folders.clone(),
            gpus: vec![self.gpu.number],
            provider,
            max_batch: self.plan.max_batch,
            max_delay: MAX_DELAY,
            // The default of a lane.
            cuda_graphs: false,
            engine_cache,
            decode: DecodeSettings {
                threads: self.cores(),
                nvjpeg: true,
                check_jpeg: false,
                folders,
                limits: DecodeLimits::default(),
                resize: self.bundle().context("the model bundle")?.preprocess().resize,
                stalls: Stalls::new(STALL_TIMEOUT, 1),
            },
        })
    }

    /// What the numbers were measured on: GPU, driver, libraries, machine, date, command line.
    pub(super) fn about(&self) -> Value {
        let folders = library_folders(&self.args.folders);
        // The name of the link target contains the version.
        let file = |path: std::path::PathBuf| path.canonicalize().unwrap_or(path).display().to_string();
        let libraries: BTreeMap<&str, Option<String>> = LIBRARIES
            .iter()
            .map(|library| (library.name, find_library(library.name, &folders).map(file)))
            .collect();
        let kernel_module = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
        let module = kernel_module.lines().next().unwrap_or_default().split_whitespace();
        let providers = self.providers().map_err(|error| error.to_string());
        json!({
            "gpu": {
                "number": self.gpu.number,
                "name": self.gpu.name,
                "capability": self.gpu.capability.to_string(),
                "memory_bytes": self.gpu.memory,
                "driver": format!("driver for CUDA {}", self.driver.version),
                "driver_library": self.driver.library.display().to_string(),
                "kernel_module": module.collect::<Vec<_>>().join(" "),
            },
            "libraries": libraries,
            "onnxruntime": self.onnxruntime().map(file),
            "ORT_DYLIB_PATH": std::env::var("ORT_DYLIB_PATH").ok(),
            "providers": match &providers {
                Ok(providers) => json!(providers.iter().map(ToString::to_string).collect::<Vec<_>>()),
                Err(missing) => json!({ "none": missing }),
            },
            "weir_version": env!("CARGO_PKG_VERSION"),
            "machine": machine(),
            "date": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            "command": std::env::args().collect::<Vec<_>>(),
            "seconds_per_measurement": self.plan.seconds.as_secs_f64(),
        })
    }
}
