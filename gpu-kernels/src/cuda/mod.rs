//! What there is of NVIDIA on this machine: driver, GPUs, libraries. Everything is looked for at run time, and nothing that
//! is missing, too old or damaged is more than an error.
//!
//! Of this module only `library`, `driver` and `nvml` use `unsafe`: they load libraries and call them.

mod driver;
mod libraries;
pub(crate) mod library;
mod nvml;

pub use driver::{Driver, Gpu, LEAST_CAPABILITY, LEAST_DRIVER, Version};
pub use libraries::{LIBRARIES, LibraryUse, NeededLibrary, find_library, library_folders};
pub use library::LibraryError;
pub use nvml::{GpuReading, Nvml};

/// Why there is no GPU to use.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The driver's library is not there or can't be loaded.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The driver is older than the kernels.
    #[error("the NVIDIA driver is for CUDA {found}; Weir's kernels need {LEAST_DRIVER} (driver 580)")]
    OldDriver {
        /// What it supports.
        found: Version,
    },
    /// The driver is there, but no GPU.
    #[error("the NVIDIA driver finds no GPU")]
    NoGpu,
    /// The driver refused a call.
    #[error("the NVIDIA driver refused {call}: error {code}{}", hint(call, *code))]
    Refused {
        /// The function.
        call: &'static str,
        /// CUresult, or nvmlReturn_t of a function of NVML.
        code: i32,
    },
}

/// The codes that a person can do something about, in words.
fn hint(call: &str, code: i32) -> &'static str {
    if call.starts_with("nvml") {
        return match code {
            4 => " (no permission)",
            9 => " (the kernel module is not loaded)",
            15 => " (the GPU is lost)",
            18 => " (its library and its kernel module are of different versions; restart the machine)",
            _ => "",
        };
    }
    match code {
        2 => " (out of memory)",
        3 => " (it is shutting down)",
        46 | 802 => " (the system is not ready; on machines with NVSwitch the fabric manager must run)",
        214 => " (an uncorrectable ECC error; the GPU must be reset)",
        803 => " (its library and its kernel module are of different versions; restart the machine)",
        804 => " (this GPU does not take the compatibility driver)",
        999 => " (unknown; often the kernel module is not loaded)",
        _ => "",
    }
}

/// What a function of the driver or of NVML returned; both call 0 success.
fn check(call: &'static str, code: i32) -> Result<(), GpuError> {
    if code == 0 { Ok(()) } else { Err(GpuError::Refused { call, code }) }
}

impl GpuError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Library(LibraryError::Missing { .. }) => {
                "install the NVIDIA driver, 580 or newer (in a container, start it with --gpus all)"
            }
            Self::Library(_) => "install the NVIDIA driver again; this library of it is not usable",
            Self::OldDriver { .. } => "install the NVIDIA driver 580 or newer",
            Self::NoGpu => "see what `nvidia-smi` lists, and that CUDA_VISIBLE_DEVICES hides none",
            Self::Refused { .. } => "see what `nvidia-smi` and the kernel's log (`dmesg`) say",
        }
    }
}
