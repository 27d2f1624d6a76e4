//! What there is of NVIDIA on this machine: driver, GPUs, libraries. Everything is looked for at run time, and nothing that
//! is missing, too old or damaged is more than an error. A [`Device`] is a GPU in use: streams, events and memory come from it.
//!
//! Of this module `unsafe` is in `library`, `driver` and `nvml`, which load libraries and call them, and in `device`, `memory` and `copy`,
//! which use the driver through `cudarc`.

mod copy;
mod device;
mod driver;
mod libraries;
pub(crate) mod library;
mod memory;
mod nvml;
mod pool;
mod stream;
mod tensorrt;

pub use copy::copy_times;
pub use device::Device;
pub use driver::{Driver, Gpu, MIN_CAPABILITY, MIN_DRIVER, Version};
pub use libraries::{LIBRARIES, LibraryUse, NeededLibrary, find_library, library_folders};
pub use library::{LibraryError, preload_library};
pub use memory::{DeviceMemory, PinnedMemory};
pub use nvml::{GpuReading, Nvml};
pub use pool::{Block, DevicePool, PinnedPool, Pool};
pub use stream::{Event, Stream};
pub use tensorrt::tensorrt_version;

use cudarc::driver::DriverError;

/// Why there is no GPU to use.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The driver's library is not there or can't be loaded.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The driver is older than the kernels.
    #[error("the NVIDIA driver is for CUDA {found}; Weir's kernels need {MIN_DRIVER} (driver 580)")]
    OldDriver {
        /// What it supports.
        found: Version,
    },
    /// The driver is there, but no GPU.
    #[error("the NVIDIA driver finds no GPU")]
    NoGpu,
    /// There are GPUs, but none of this number.
    #[error("there is no GPU {number}; the NVIDIA driver finds {count}, numbered from 0")]
    NoSuchGpu {
        /// The number that was asked for.
        number: u32,
        /// How many there are.
        count: usize,
    },
    /// A GPU that the kernels are not compiled for.
    #[error("GPU {gpu}: Weir's kernels need compute capability {MIN_CAPABILITY}")]
    OldGpu {
        /// What the driver says of it.
        gpu: String,
    },
    /// It was lost, and others in this process have not let go of it yet.
    #[error("GPU {number} was lost; it is opened again once all that used it has ended")]
    Recovering {
        /// Its number.
        number: u32,
    },
    /// The driver's library was loaded, but not found again by its name.
    #[error("the NVIDIA driver's library does not call itself libcuda.so.1, so it can't be used")]
    Unbound,
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
        700 => " (a kernel read or wrote where it must not)",
        214 => " (an uncorrectable ECC error; the GPU must be reset)",
        803 => " (its library and its kernel module are of different versions; restart the machine)",
        804 => " (this GPU does not take the compatibility driver)",
        999 => " (unknown; often the kernel module is not loaded)",
        _ => "",
    }
}

/// The same of what the bindings return.
pub(crate) fn refused<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, GpuError> {
    result.map_err(|error| GpuError::Refused { call, code: error.0 as i32 })
}

/// What a function of the driver or of NVML returned; both call 0 success.
fn check(call: &'static str, code: i32) -> Result<(), GpuError> {
    if code == 0 { Ok(()) } else { Err(GpuError::Refused { call, code }) }
}

impl GpuError {
    /// Whether the GPU has too little free memory, which may pass.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Refused { code: 2, .. })
    }

    /// Whether what is on the GPU is lost: after such an error every call fails until [`Device::reset`]. An illegal access, an
    /// uncorrectable memory error, a GPU that has fallen off the bus, a launch that failed or took too long.
    pub fn is_lost(&self) -> bool {
        // CUresult: the driver's documentation says of these that the process's context can't be used any more.
        const LOST: [i32; 17] =
            [4, 46, 201, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999];
        matches!(self, Self::Refused { call, code } if !call.starts_with("nvml") && LOST.contains(code))
    }

    /// What to do about it.
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
