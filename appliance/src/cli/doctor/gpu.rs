//! What `weir doctor` says of GPUs: the driver, each GPU, each library, and the command that installs what is missing.

use std::path::PathBuf;

use gpu_kernels::cuda::{Driver, LEAST_CAPABILITY, LIBRARIES, LibraryUse, find_library, library_folders};

use super::{Check, ok, warning};
use crate::config::Config;
use crate::engine::DeviceKind;

/// Nothing where the configuration wants no GPU. That a GPU which was asked for can't be had is for the check of the device
/// to fail on; here stands what is known of it.
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
    let library = driver.library().display();
    let mut checks = vec![ok("gpu driver", format!("supports CUDA {}, {library}", driver.version))];
    for gpu in &driver.gpus {
        checks.push(if gpu.capability < LEAST_CAPABILITY {
            let text = format!("{gpu}; the kernels need {LEAST_CAPABILITY}");
            warning("gpu", text, "use a GPU of the Turing generation (2018) or later")
        } else {
            ok("gpu", gpu)
        });
    }
    checks.extend(check_libraries(config));
    checks
}

fn check_libraries(config: &Config) -> impl Iterator<Item = Check> {
    let mut folders = library_folders(&config.engine.library_folders);
    // The providers lie beside the library that loads them.
    let runtime = config.engine.onnxruntime.clone().or_else(|| std::env::var_os("ORT_DYLIB_PATH").map(Into::into));
    let beside = |path: PathBuf| if path.is_dir() { Some(path) } else { path.parent().map(Into::into) };
    folders.extend(runtime.and_then(beside));
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
