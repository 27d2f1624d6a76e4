//! State of the GPUs through NVML (libnvidia-ml.so.1, part of the driver): utilisation, memory, temperature, power,
//! throttling, uncorrectable errors. See NVIDIA's NVML API reference.
#![allow(unsafe_code, reason = "NVML is called through C functions; each block says why it is sound")]

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::path::PathBuf;

use super::library::{Library, LibraryError};
use super::{GpuError, check};

const NAME: &str = "libnvidia-ml.so.1";

/// Codes for a value that a GPU does not report, or not to this process; in a virtual machine any of these occurs.
const NOT_SUPPORTED: c_int = 3;
const NO_PERMISSION: c_int = 4;
const NO_FUNCTION: c_int = 13;
const UNKNOWN: c_int = 999;
/// nvmlTemperatureSensors_t: the chip.
const CHIP: c_uint = 0;
/// nvmlMemoryErrorType_t and nvmlEccCounterType_t: uncorrected, since the driver was loaded.
const UNCORRECTED: c_uint = 1;
const VOLATILE: c_uint = 0;
/// nvmlClocksThrottleReason: power cap, hardware slowdown, thermal slowdowns, power brake. Neither the idle clock nor clocks
/// set by a user.
const SLOWED: c_ulonglong = 0x4 | 0x8 | 0x20 | 0x40 | 0x80;

/// Current values of a GPU; `None` for those that it does not report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuReading {
    /// Percentage of the time in which a kernel ran.
    pub utilization: Option<u32>,
    /// Memory in use by all processes, in bytes.
    pub memory_used: Option<u64>,
    /// Total memory in bytes.
    pub memory_total: Option<u64>,
    /// Degrees Celsius.
    pub temperature: Option<u32>,
    /// Milliwatts.
    pub power: Option<u32>,
    /// Whether its clocks are limited by heat or power.
    pub throttled: Option<bool>,
    /// Uncorrectable memory errors since the driver was loaded.
    pub ecc_errors: Option<u64>,
}

type Device = *mut c_void;
type Status = c_int;

#[repr(C)]
#[derive(Default)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[repr(C)]
#[derive(Default)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// NVML, initialised; shut down when dropped.
pub struct Nvml {
    calls: Calls,
    gpus: u32,
}

struct Calls {
    init: unsafe extern "C" fn() -> Status,
    shutdown: unsafe extern "C" fn() -> Status,
    count: unsafe extern "C" fn(*mut c_uint) -> Status,
    device: unsafe extern "C" fn(c_uint, *mut Device) -> Status,
    utilization: unsafe extern "C" fn(Device, *mut Utilization) -> Status,
    memory: unsafe extern "C" fn(Device, *mut Memory) -> Status,
    temperature: unsafe extern "C" fn(Device, c_uint, *mut c_uint) -> Status,
    power: unsafe extern "C" fn(Device, *mut c_uint) -> Status,
    slowed: unsafe extern "C" fn(Device, *mut c_ulonglong) -> Status,
    errors: unsafe extern "C" fn(Device, c_uint, c_uint, *mut c_ulonglong) -> Status,
    _library: Library,
}

impl std::fmt::Debug for Nvml {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "Nvml({} GPUs)", self.gpus)
    }
}

impl Calls {
    fn load(folders: &[PathBuf]) -> Result<Self, LibraryError> {
        let library = Library::open(NAME, folders)?;
        // SAFETY: the types are those of nvml.h for the names with these versions, and the library lives as long as they do.
        unsafe {
            Ok(Self {
                init: library.function("nvmlInit_v2")?,
                shutdown: library.function("nvmlShutdown")?,
                count: library.function("nvmlDeviceGetCount_v2")?,
                device: library.function("nvmlDeviceGetHandleByIndex_v2")?,
                utilization: library.function("nvmlDeviceGetUtilizationRates")?,
                memory: library.function("nvmlDeviceGetMemoryInfo")?,
                temperature: library.function("nvmlDeviceGetTemperature")?,
                power: library.function("nvmlDeviceGetPowerUsage")?,
                slowed: library.function("nvmlDeviceGetCurrentClocksThrottleReasons")?,
                errors: library.function("nvmlDeviceGetTotalEccErrors")?,
                _library: library,
            })
        }
    }
}

impl Nvml {
    /// Loads the library from one of `folders` or by the system's loader, and initialises it.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn open(folders: &[PathBuf]) -> Result<Self, GpuError> {
        let calls = Calls::load(folders)?;
        // SAFETY: takes nothing.
        check("nvmlInit", unsafe { (calls.init)() })?;
        let mut nvml = Self { calls, gpus: 0 };
        // SAFETY: the function writes one unsigned int.
        check("nvmlDeviceGetCount", unsafe { (nvml.calls.count)(&raw mut nvml.gpus) })?;
        Ok(nvml)
    }

    /// Number of GPUs in this machine by NVML's numbering, which ignores CUDA_VISIBLE_DEVICES.
    pub fn gpus(&self) -> u32 {
        self.gpus
    }

    /// Reads the current values of a GPU.
    ///
    /// # Errors
    /// [`GpuError::Refused`], also when the GPU is lost.
    pub fn read(&self, gpu: u32) -> Result<GpuReading, GpuError> {
        let mut device = std::ptr::null_mut();
        // SAFETY: the function writes one handle.
        check("nvmlDeviceGetHandleByIndex", unsafe { (self.calls.device)(gpu, &raw mut device) })?;
        // SAFETY: in each of these the handle is the one that NVML has just returned, and the function writes one value of the
        // type that `known` initialises.
        let (utilization, memory, temperature, power, slowed, errors) = unsafe {
            (
                known("nvmlDeviceGetUtilizationRates", |to| (self.calls.utilization)(device, to))?,
                known("nvmlDeviceGetMemoryInfo", |to| (self.calls.memory)(device, to))?,
                known("nvmlDeviceGetTemperature", |to| (self.calls.temperature)(device, CHIP, to))?,
                known("nvmlDeviceGetPowerUsage", |to| (self.calls.power)(device, to))?,
                known("nvmlDeviceGetCurrentClocksThrottleReasons", |to| (self.calls.slowed)(device, to))?,
                known("nvmlDeviceGetTotalEccErrors", |to| {
                    (self.calls.errors)(device, UNCORRECTED, VOLATILE, to)
                })?,
            )
        };
        let memory: Option<Memory> = memory;
        Ok(GpuReading {
            utilization: utilization.map(|rates: Utilization| rates.gpu),
            memory_used: memory.as_ref().map(|memory| memory.used),
            memory_total: memory.map(|memory| memory.total),
            temperature,
            power,
            throttled: slowed.map(|reasons: c_ulonglong| reasons & SLOWED != 0),
            ecc_errors: errors,
        })
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: takes nothing; NVML counts its initialisations.
        unsafe { (self.calls.shutdown)() };
    }
}

/// Reads one value; `None` if the GPU does not report it.
fn known<T: Default>(call: &'static str, ask: impl FnOnce(*mut T) -> Status) -> Result<Option<T>, GpuError> {
    let mut value = T::default();
    match ask(&raw mut value) {
        NOT_SUPPORTED | NO_PERMISSION | NO_FUNCTION | UNKNOWN => Ok(None),
        status => check(call, status).map(|()| Some(value)),
    }
}
