//! Which device serves: the configured one or an error, and `auto` with its reason. Never a silent fallback.

use std::fmt;
use std::path::PathBuf;

use gpu_kernels::cuda::Driver;
use serde::{Deserialize, Serialize};

use super::EngineError;

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

/// The device that serves, and why it is this one.
#[derive(Clone, Debug)]
pub struct DeviceChoice {
    /// Never [`DeviceKind::Auto`].
    pub kind: DeviceKind,
    /// A sentence for a person.
    pub reason: String,
}

/// Settles the configured device. The NVIDIA driver is asked unless it is the CPU; its library may lie in one of `folders`.
///
/// # Errors
/// [`EngineError::DeviceUnavailable`] for `cuda` and `tensorrt`, with what is missing: a box that was told to use its GPU
/// must not run on its CPU unnoticed. This version has no GPU lanes, so that a GPU which is there is not enough.
pub fn choose(asked: DeviceKind, folders: &[PathBuf]) -> Result<DeviceChoice, EngineError> {
    let cpu = |reason: String| Ok(DeviceChoice { kind: DeviceKind::Cpu, reason });
    if asked == DeviceKind::Cpu {
        return cpu("configured".into());
    }
    let gpus = |driver: Driver| driver.gpus.iter().map(|gpu| gpu.name.clone()).collect::<Vec<_>>().join(", ");
    let probed = Driver::probe(folders).map(gpus);
    if asked == DeviceKind::Auto {
        return cpu(match probed {
            Ok(gpus) => format!(
                "auto: there is {gpus}, but this version of Weir serves on the CPU; its GPU lanes are not built yet"
            ),
            Err(error) => format!("auto: there is no GPU to use: {error}"),
        });
    }
    let other = "set engine.device to \"auto\" or \"cpu\"";
    let (reason, remedy) = match probed {
        Ok(gpus) => (format!("there is {gpus}, but this version of Weir has no GPU lanes yet"), other.into()),
        Err(error) => (error.to_string(), format!("{}, or {other}", error.remedy())),
    };
    Err(EngineError::DeviceUnavailable { asked, reason, remedy })
}
