//! Which device serves: the configured one or an error, and `auto` with its reason. Never a silent fallback.

use std::fmt;
use std::path::PathBuf;

use gpu_kernels::cuda::{Driver, Gpu, LibraryUse, MIN_CAPABILITY};
use serde::{Deserialize, Serialize};

use super::gpu_libraries::{GpuLibraries, runtime_in_folders};
use super::{EngineError, Provider, Runtime};

/// A kind of device that an engine can run on, or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The best that this box has; what was chosen and why is logged and shown in /health.
    #[default]
    Auto,
    /// The CPU: one single-threaded session a lane.
    Cpu,
    /// An NVIDIA GPU through ONNX Runtime's CUDA provider.
    Cuda,
    /// An NVIDIA GPU through ONNX Runtime's TensorRT provider.
    Tensorrt,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Tensorrt => "tensorrt",
        })
    }
}

/// Loads the ONNX Runtime that a daemon with this request loads, for work on the CPU: no provider is asked for anything, and a
/// GPU that is not here is no error.
///
/// # Errors
/// As [`Runtime::load`].
pub fn load_runtime(request: &DeviceRequest) -> Result<Runtime, EngineError> {
    let kind = if request.kind == DeviceKind::Cpu { DeviceKind::Cpu } else { DeviceKind::Auto };
    match choose(&DeviceRequest { kind, ..request.clone() })?.libraries {
        Some(libraries) => Runtime::load(Some(&libraries.onnxruntime)),
        None => load_for_cpu(request),
    }
}

/// The configured library or one of the usual places, else one in `engine.library_folders`.
fn load_for_cpu(request: &DeviceRequest) -> Result<Runtime, EngineError> {
    match Runtime::load(request.onnxruntime.as_deref()) {
        Err(EngineError::LibraryMissing { looked }) if request.onnxruntime.is_none() => {
            match runtime_in_folders(&request.folders) {
                Some(library) => Runtime::load(Some(&library)),
                None => Err(EngineError::LibraryMissing { looked: looked + ", engine.library_folders" }),
            }
        }
        loaded => loaded,
    }
}

/// What is asked for, and where what it needs may lie.
#[derive(Clone, Debug, Default)]
pub struct DeviceRequest {
    /// The configured device.
    pub kind: DeviceKind,
    /// Numbers of the GPUs that may serve; all where there is none.
    pub gpus: Vec<u32>,
    /// Folders with libraries of NVIDIA's.
    pub folders: Vec<PathBuf>,
    /// The configured libonnxruntime.
    pub onnxruntime: Option<PathBuf>,
}

/// The device that serves, and why it is this one.
#[derive(Clone, Debug)]
pub struct DeviceChoice {
    /// Never [`DeviceKind::Auto`].
    pub kind: DeviceKind,
    /// A sentence for a person.
    pub reason: String,
    /// Whether the configuration left the choice open, so that the CPU may stand in for a GPU.
    pub is_auto: bool,
    /// The GPUs that serve; none on the CPU.
    pub gpus: Vec<Gpu>,
    /// The CUDA version of the driver, where GPUs serve.
    pub driver: String,
    /// What they need.
    pub libraries: Option<GpuLibraries>,
}

impl DeviceChoice {
    fn cpu(reason: String, is_auto: bool) -> Self {
        let (gpus, driver, libraries) = (Vec::new(), String::new(), None);
        Self { kind: DeviceKind::Cpu, reason, is_auto, gpus, driver, libraries }
    }

    /// The provider for it; none for the CPU.
    pub fn provider(&self) -> Option<Provider> {
        match self.kind {
            DeviceKind::Cuda => Some(Provider::Cuda),
            DeviceKind::Tensorrt => Some(Provider::Tensorrt),
            DeviceKind::Auto | DeviceKind::Cpu => None,
        }
    }

    /// Loads ONNX Runtime for it, and has it load its provider: only then is it known to be usable. With `auto` the CPU serves
    /// where it is not.
    ///
    /// # Errors
    /// [`EngineError`] of the library; [`EngineError::DeviceUnavailable`] when the GPU was asked for by name.
    pub fn load_runtime(&mut self, request: &DeviceRequest) -> Result<Runtime, EngineError> {
        let (Some(provider), Some(libraries)) = (self.provider(), &self.libraries) else {
            return load_for_cpu(request);
        };
        let loaded = libraries.preload().map_err(|error| error.to_string());
        let runtime = Runtime::load(Some(&libraries.onnxruntime))?;
        let gpu = self.gpus.first().map_or(0, |gpu| gpu.number);
        let refused = |error: ort::Error| {
            let said = error.to_string();
            format!("ONNX Runtime's {provider} provider can't be used: {}", said.trim())
        };
        let usable = loaded.and_then(|()| provider.probe(&runtime, gpu).map_err(refused));
        if let Err(reason) = usable {
            let what = format!("there is {}, but {reason}", names(&self.gpus));
            if !self.is_auto {
                let remedy = "see what `weir doctor` says of its libraries".to_owned();
                return Err(unavailable(request.kind, what, &remedy));
            }
            *self = Self::cpu(format!("auto: {what}"), true);
        }
        Ok(runtime)
    }
}

/// Settles the configured device. The NVIDIA driver is asked unless it is the CPU.
///
/// # Errors
/// [`EngineError::DeviceUnavailable`] for `cuda` and `tensorrt`, with what is missing: a box that was told to use its GPU
/// must not run on its CPU unnoticed.
pub fn choose(request: &DeviceRequest) -> Result<DeviceChoice, EngineError> {
    if request.kind == DeviceKind::Cpu {
        return Ok(DeviceChoice::cpu("configured".into(), false));
    }
    let is_auto = request.kind == DeviceKind::Auto;
    match on_gpu(request) {
        Ok(choice) => Ok(choice),
        Err((reason, _)) if is_auto => Ok(DeviceChoice::cpu(format!("auto: {reason}"), true)),
        Err((reason, remedy)) => Err(unavailable(request.kind, reason, &remedy)),
    }
}

fn unavailable(asked: DeviceKind, reason: String, remedy: &str) -> EngineError {
    let remedy = format!("{remedy}, or set engine.device to \"auto\" or \"cpu\"");
    EngineError::DeviceUnavailable { asked, reason, remedy }
}

fn names(gpus: &[Gpu]) -> String {
    gpus.iter().map(|gpu| gpu.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The GPUs with what they need, or why not and the remedy.
fn on_gpu(request: &DeviceRequest) -> Result<DeviceChoice, (String, String)> {
    let driver = Driver::probe(&request.folders)
        .map_err(|error| (format!("there is no GPU to use: {error}"), error.remedy().to_owned()))?;
    let gpus = wanted(&driver, &request.gpus)?;
    let there_is = format!("there is {}", names(&gpus));
    let find = |uses: &[LibraryUse]| {
        GpuLibraries::find(request, uses)
            .map_err(|missing| (format!("{there_is}, but {missing}"), missing.remedy()))
    };
    // Where it was found by its path the providers would not find it by its name.
    let with_driver = |mut libraries: GpuLibraries| {
        if driver.library.is_absolute() {
            libraries.needed.insert(0, driver.library.clone());
        }
        libraries
    };
    let cuda: &[LibraryUse] = &[LibraryUse::Cuda];
    let tensorrt: &[LibraryUse] = &[LibraryUse::Cuda, LibraryUse::Tensorrt];
    let (kind, libraries) = match request.kind {
        DeviceKind::Tensorrt => (DeviceKind::Tensorrt, find(tensorrt)?),
        DeviceKind::Cuda => (DeviceKind::Cuda, find(cuda)?),
        DeviceKind::Auto | DeviceKind::Cpu => match find(tensorrt) {
            Ok(libraries) => (DeviceKind::Tensorrt, libraries),
            Err(_) => (DeviceKind::Cuda, find(cuda)?),
        },
    };
    let is_auto = request.kind == DeviceKind::Auto;
    let how = if is_auto { "auto: there is" } else { "configured:" };
    Ok(DeviceChoice {
        kind,
        reason: format!("{how} {}", names(&gpus)),
        is_auto,
        gpus,
        driver: driver.version.to_string(),
        libraries: Some(with_driver(libraries)),
    })
}

fn wanted(driver: &Driver, numbers: &[u32]) -> Result<Vec<Gpu>, (String, String)> {
    let known: Vec<String> = driver.gpus.iter().map(ToString::to_string).collect();
    if let Some(number) = numbers.iter().find(|&&number| driver.gpus.iter().all(|gpu| gpu.number != number)) {
        let reason = format!("engine.gpus names GPU {number}; there are {}", known.join("; "));
        return Err((reason, "name one of these".into()));
    }
    let named = |gpu: &&Gpu| numbers.is_empty() || numbers.contains(&gpu.number);
    let fit = |gpu: &&Gpu| gpu.capability >= MIN_CAPABILITY;
    let gpus: Vec<Gpu> = driver.gpus.iter().filter(named).filter(fit).cloned().collect();
    if gpus.is_empty() {
        let reason =
            format!("the kernels need compute capability {MIN_CAPABILITY}; there is {}", known.join("; "));
        return Err((reason, "use a GPU of the Turing generation (2018) or later".into()));
    }
    Ok(gpus)
}
