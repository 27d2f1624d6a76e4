//! What the numbers are of: GPU, driver, libraries, machine, date, command line.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gpu_kernels::cuda::{LIBRARIES, find_library, library_folders};
use serde_json::{Value, json};

use super::setup::Setup;
use crate::process::machine;

impl Setup {
    pub(super) fn about(&self) -> Value {
        let folders = library_folders(&self.args.folders);
        // The real file's name says the version, where the name by which it is loaded is a link.
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
