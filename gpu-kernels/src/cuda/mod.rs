//! NVIDIA: driver, GPUs, libraries. All of it is located at run time; whatever is missing, too old or damaged is reported as
//! an error. A [`Device`] is a GPU in use, with its streams, events and memory.
//!
//! Of this module `unsafe` is in `library`, `driver` and `nvml`, which load libraries and call them, and in `device` and `memory`,
//! which use the driver through `cudarc`.

mod device;
mod driver;
pub(crate) mod library;
mod memory;
mod nvml;
mod pool;

pub use device::{Device, Event, Stream};
pub use driver::{Driver, Gpu, MIN_CAPABILITY, MIN_DRIVER, Version};
pub use library::{
    LIBRARIES, LibraryError, LibraryUse, NeededLibrary, find_library, library_folders, preload_library,
    tensorrt_version,
};
pub use memory::{DeviceMemory, PinnedMemory, copy_times};
pub use nvml::{GpuReading, Nvml};
pub use pool::{Block, DevicePool, PinnedPool, Pool};

use cudarc::driver::DriverError;

/// Why a GPU can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The driver's library is missing or can't be loaded.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The driver is older than the kernels.
    #[error("the NVIDIA driver is for CUDA {found}; Weir's kernels need {MIN_DRIVER} (driver 580)")]
    OldDriver {
        /// The CUDA version that it supports.
        found: Version,
    },
    /// The driver is there, but no GPU.
    #[error("the NVIDIA driver finds no GPU")]
    NoGpu,
    /// There is no GPU of this number.
    #[error("there is no GPU {number}; the NVIDIA driver finds {count}, numbered from 0")]
    NoSuchGpu {
        /// The requested number.
        number: u32,
        /// The number of GPUs.
        count: usize,
    },
    /// The GPU's compute capability is below that of the compiled kernels.
    #[error("GPU {gpu}: Weir's kernels need compute capability {MIN_CAPABILITY}")]
    OldGpu {
        /// The driver's description of the GPU.
        gpu: String,
    },
    /// The GPU was lost, and has users in this process that have not released it yet.
    #[error("GPU {number} was lost; it is opened again once all that used it has ended")]
    Recovering {
        /// Its number.
        number: u32,
    },
    /// The driver's library was loaded, but is not found by its name.
    #[error("the NVIDIA driver's library does not call itself libcuda.so.1, so it can't be used")]
    Unbound,
    /// The driver refused a call.
    #[error("the NVIDIA driver refused {call}: error {code}{}", hint(call, *code))]
    Refused {
        /// The function.
        call: &'static str,
        /// CUresult, or nvmlReturn_t of an NVML function.
        code: i32,
    },
}

/// Explains the codes for which there is a remedy.
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
        700 => " (a kernel read or wrote where it must not)",
        214 => " (an uncorrectable ECC error; the GPU must be reset)",
        803 => " (its library and its kernel module are of different versions; restart the machine)",
        804 => " (this GPU does not take the compatibility driver)",
        999 => " (unknown; often the kernel module is not loaded)",
        _ => "",
    }
}

/// Converts a result of the bindings.
pub(crate) fn refused<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, GpuError> {
    result.map_err(|error| GpuError::Refused { call, code: error.0 as i32 })
}

/// Converts a return code of the driver or of NVML; 0 is success in both.
fn check(call: &'static str, code: i32) -> Result<(), GpuError> {
    if code == 0 { Ok(()) } else { Err(GpuError::Refused { call, code }) }
}

impl GpuError {
    /// Whether the GPU is out of memory, which may be temporary.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Refused { code: 2, .. })
    }

    /// Whether the GPU's context is lost: after such an error every call fails until it is reset. Causes are an illegal
    /// access, an uncorrectable memory error, a GPU that has fallen off the bus, and a launch that failed or timed out.
    pub fn is_lost(&self) -> bool {
        // CUresult codes after which the process's context can't be used, according to the driver's documentation.
        const LOST: [i32; 17] =
            [4, 46, 201, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999];
        matches!(self, Self::Refused { call, code } if !call.starts_with("nvml") && LOST.contains(code))
    }

    /// How to fix it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Library(LibraryError::Missing { .. }) => {
                "install the NVIDIA driver, 580 or newer (in a container, start it with --gpus all)"
            }
            Self::Library(_) => "install the NVIDIA driver again; this library of it is not usable",
            Self::OldDriver { .. } => "install the NVIDIA driver 580 or newer",
            Self::NoSuchGpu { .. } => "see the numbers in what `weir doctor` lists",
            Self::OldGpu { .. } => "use a GPU of the Turing generation (2018) or later",
            Self::Recovering { .. } => "wait; if it stays so, restart this process",
            Self::Unbound => "install the NVIDIA driver again",
            Self::NoGpu => "see what `nvidia-smi` lists, and that CUDA_VISIBLE_DEVICES hides none",
            Self::Refused { .. } => "see what `nvidia-smi` and the kernel's log (`dmesg`) say",
        }
    }
}
