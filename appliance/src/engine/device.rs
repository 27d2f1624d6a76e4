//! Which device serves: the configured one or an error, and `auto` with its reason. Never a silent fallback.

use std::fmt;

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

/// Settles the configured device.
///
/// # Errors
/// [`EngineError::DeviceUnavailable`] for `cuda` and `tensorrt`: this version serves on the CPU alone, and a box
/// that was told to use its GPU must not run on its CPU unnoticed.
pub fn choose(asked: DeviceKind) -> Result<DeviceChoice, EngineError> {
    match asked {
        DeviceKind::Cpu => Ok(DeviceChoice { kind: DeviceKind::Cpu, reason: "configured".into() }),
        DeviceKind::Auto => Ok(DeviceChoice {
            kind: DeviceKind::Cpu,
            reason: "auto: this version of Weir serves on the CPU; its GPU lanes are not built yet".into(),
        }),
        DeviceKind::Cuda | DeviceKind::Tensorrt => Err(EngineError::DeviceUnavailable {
            asked,
            reason: "this version of Weir has no GPU lanes yet".into(),
            remedy: "set engine.device to \"auto\" or \"cpu\"".into(),
        }),
    }
}
