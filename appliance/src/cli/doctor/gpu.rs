//! The checks of GPUs in `weir doctor`: the driver, each GPU, each library, and the command that installs missing ones.

use gpu_kernels::cuda::{
    Driver, GpuError, GpuReading, LIBRARIES, LibraryError, LibraryUse, MIN_CAPABILITY, Nvml, find_library,
    library_folders,
};
use inference::engine::{DeviceKind, library_candidates};

use super::{Check, ok, warning};
use crate::config::Config;

/// Nothing where no GPU is configured. A configured GPU that is not usable fails the check of the device; these checks show
/// details.
pub(super) fn check_gpu(config: &Config) -> Vec<Check> {
    let asked = config.engine.device;
    if asked == DeviceKind::Cpu {
        return Vec::new();
    }
    let driver = match Driver::probe(&config.engine.library_folders) {
        Ok(driver) => driver,
        Err(error) if asked == DeviceKind::Auto => {
            return vec![ok("gpu", format!("none to use: {error}"))];
        }
        Err(error) => {
            let mut checks = vec![warning("gpu", &error, error.remedy())];
            checks.extend(check_libraries(config));
            return checks;
        }
    };
    let library = driver.library.display();
    let mut checks = vec![ok("gpu driver", format!("supports CUDA {}, {library}", driver.version))];
    for gpu in &driver.gpus {
        checks.push(if gpu.capability < MIN_CAPABILITY {
            let text = format!("{gpu}; the kernels need {MIN_CAPABILITY}");
            warning("gpu", text, "use a GPU of the Turing generation (2018) or later")
        } else {
            ok("gpu", gpu)
        });
    }
    checks.extend(read_gpus(config));
    checks.extend(check_libraries(config));
    checks
}

/// The readings of each GPU; nothing without NVML, which the list of libraries shows as missing.
fn read_gpus(config: &Config) -> Vec<Check> {
    let nvml = match Nvml::open(&config.engine.library_folders) {
        Ok(nvml) => nvml,
        Err(GpuError::Library(LibraryError::Missing { .. })) => return Vec::new(),
        Err(error) => return vec![warning("gpu readings", &error, error.remedy())],
    };
    let read = |gpu| match nvml.read(gpu) {
        Ok(reading) if reading.throttled == Some(true) => warning(
            "gpu readings",
            format!("{gpu}: {}, held back by heat or power", in_words(&reading)),
            "see to its cooling and its power limit (`nvidia-smi -q -d PERFORMANCE`)",
        ),
        Ok(reading) => ok("gpu readings", format!("{gpu}: {}", in_words(&reading))),
        Err(error) => warning("gpu readings", format!("{gpu}: {error}"), error.remedy()),
    };
    (0..nvml.gpus()).map(read).collect()
}

fn in_words(reading: &GpuReading) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let said = [
        reading.utilization.map(|percent| format!("{percent} % busy")),
        reading.memory_used.map(|bytes| format!("{:.1} GiB in use", gib(bytes))),
        reading.temperature.map(|degrees| format!("{degrees} °C")),
        reading.power.map(|milliwatts| format!("{} W", milliwatts / 1000)),
        reading.ecc_errors.map(|errors| format!("{errors} uncorrectable memory errors")),
    ];
    said.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn check_libraries(config: &Config) -> impl Iterator<Item = Check> {
    let mut folders = library_folders(&config.engine.library_folders);
    // The providers are in the directory of the library that loads them.
    let runtime = library_candidates(config.engine.onnxruntime.as_deref()).into_iter().map(|(path, _)| path);
    folders.extend(
        runtime.filter_map(|path| if path.is_dir() { Some(path) } else { path.parent().map(Into::into) }),
    );
    LIBRARIES.into_iter().map(move |library| match find_library(library.name, &folders) {
        Some(path) => ok("gpu library", path.display()),
        None => warning(
            "gpu library",
            format!("{} is missing: {}", library.name, purpose(library.used_for)),
            library.install,
        ),
    })
}

fn purpose(used_for: LibraryUse) -> &'static str {
    match used_for {
        LibraryUse::Decode => "for JPEGs decoded on the GPU",
        LibraryUse::Cuda => "for inference with CUDA",
        LibraryUse::Tensorrt => "for inference with TensorRT",
        LibraryUse::Monitoring => "for the GPU's utilisation, memory and temperature",
    }
}
