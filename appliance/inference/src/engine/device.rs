//! Selection of the device: the configured one or an error, and `auto` with its reason. Never a silent fallback.

use std::fmt;
use std::path::PathBuf;

use gpu_kernels::cuda::{Driver, Gpu, LibraryUse, MIN_CAPABILITY};
use serde::{Deserialize, Serialize};

use super::libraries::{GpuLibraries, runtime_in_folders};
use super::{EngineError, Provider, Runtime};

/// The kind of device for the engine, or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The best device of this machine; the choice and its reason are logged and shown in /health.
    #[default]
    Auto,
    /// The CPU: one single-threaded session per lane.
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

/// Loads the ONNX Runtime that a daemon with this request loads, for work on the CPU: no provider is initialised, and a
/// missing GPU is not an error.
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

/// Loads the configured library or one from the standard locations, else one in `engine.library_folders`.
fn load_for_cpu(request: &DeviceRequest) -> Result<Runtime, EngineError> {
    match Runtime::load(request.onnxruntime.as_deref()) {
        Err(EngineError::LibraryMissing { searched }) if request.onnxruntime.is_none() => {
            match runtime_in_folders(&request.folders) {
                Some(library) => Runtime::load(Some(&library)),
                None => Err(EngineError::LibraryMissing { searched: searched + ", engine.library_folders" }),
            }
        }
        loaded => loaded,
    }
}

/// The configured device, and where its libraries are searched for.
#[derive(Clone, Debug, Default)]
pub struct DeviceRequest {
    /// The configured device.
    pub kind: DeviceKind,
    /// Numbers of the GPUs to use; all GPUs if empty.
    pub gpus: Vec<u32>,
    /// Folders with NVIDIA's libraries.
    pub folders: Vec<PathBuf>,
    /// The configured libonnxruntime.
    pub onnxruntime: Option<PathBuf>,
}

/// The selected device and the reason.
#[derive(Clone, Debug)]
pub struct DeviceChoice {
    /// The device; never [`DeviceKind::Auto`].
    pub kind: DeviceKind,
    /// The reason, as a sentence.
    pub reason: String,
    /// Whether the device was selected by `auto`, so that the CPU may be used as a fallback.
    pub is_auto: bool,
    /// The GPUs; empty for the CPU.
    pub gpus: Vec<Gpu>,
    /// The CUDA version of the driver; empty for the CPU.
    pub driver: String,
    /// The libraries of the GPUs.
    pub libraries: Option<GpuLibraries>,
}

impl DeviceChoice {
    fn cpu(reason: String, is_auto: bool) -> Self {
        let (gpus, driver, libraries) = (Vec::new(), String::new(), None);
        Self { kind: DeviceKind::Cpu, reason, is_auto, gpus, driver, libraries }
    }

    /// The provider; `None` for the CPU.
    pub fn provider(&self) -> Option<Provider> {
        match self.kind {
            DeviceKind::Cuda => Some(Provider::Cuda),
            DeviceKind::Tensorrt => Some(Provider::Tensorrt),
            DeviceKind::Auto | DeviceKind::Cpu => None,
        }
    }

    /// Loads ONNX Runtime and its provider: only then is the device known to be usable. With `auto`, falls back to the CPU.
    ///
    /// # Errors
    /// [`EngineError`] of the library; [`EngineError::DeviceUnavailable`] if a GPU was explicitly configured.
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

/// Selects the device. Queries the NVIDIA driver unless the CPU is configured.
///
/// # Errors
/// [`EngineError::DeviceUnavailable`] for `cuda` and `tensorrt`, with what is missing: a machine configured to use its GPU
/// must not silently run on its CPU.
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

/// The GPUs with their libraries, or the reason and the remedy.
fn on_gpu(request: &DeviceRequest) -> Result<DeviceChoice, (String, String)> {
    let driver = Driver::probe(&request.folders)
        .map_err(|error| (format!("there is no GPU to use: {error}"), error.remedy().to_owned()))?;
    let gpus = wanted(&driver, &request.gpus)?;
    let there_is = format!("there is {}", names(&gpus));
    let find = |uses: &[LibraryUse]| {
        GpuLibraries::find(request, uses)
            .map_err(|missing| (format!("{there_is}, but {missing}"), missing.remedy()))
    };
    // The providers would not find a driver by name that was found by its path.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_says_what_it_chose_and_a_gpu_is_never_replaced() {
        let ask = |kind| choose(&DeviceRequest { kind, ..DeviceRequest::default() });
        let auto = ask(DeviceKind::Auto).unwrap();
        assert_eq!(auto.kind, DeviceKind::Cpu);
        assert!(auto.reason.contains("auto"));
        assert_eq!(ask(DeviceKind::Cpu).unwrap().kind, DeviceKind::Cpu);
        for asked in [DeviceKind::Cuda, DeviceKind::Tensorrt] {
            assert!(matches!(ask(asked), Err(EngineError::DeviceUnavailable { .. })));
        }
    }
}
