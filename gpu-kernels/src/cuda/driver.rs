//! The NVIDIA driver through libcuda.so.1: its version and its GPUs.
#![allow(unsafe_code, reason = "the driver is called through C functions; each block says why it is sound")]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;
use std::path::PathBuf;

use super::library::{Library, LibraryError};
use super::{GpuError, check};

pub(super) const NAME: &str = "libcuda.so.1";

/// The minimum CUDA version of the driver, that of the toolkit with which the kernels were compiled.
pub const MIN_DRIVER: Version = Version { major: 13, minor: 0 };
/// The minimum compute capability of the compiled kernels: Turing's.
pub const MIN_CAPABILITY: Version = Version { major: 7, minor: 5 };

const NO_DEVICE: c_int = 100;
// CUdevice_attribute.
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
/// Size of the buffer for a GPU's name; NVIDIA's names are a few dozen bytes long.
const NAME_BYTES: usize = 256;

/// A version, or a compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A GPU, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, from 0, among those in CUDA_VISIBLE_DEVICES.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub capability: Version,
    /// Its memory in bytes.
    pub memory: u64,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = self.memory as f64 / f64::from(1 << 30);
        write!(f, "{}: {}, {gib:.0} GiB, compute capability {}", self.number, self.name, self.capability)
    }
}

/// Version and GPUs of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// Path of the library, or its name if the system's loader found it.
    pub library: PathBuf,
    /// The CUDA version that the driver supports.
    pub version: Version,
    /// Its GPUs, at least one.
    pub gpus: Vec<Gpu>,
}

type Init = unsafe extern "C" fn(c_uint) -> c_int;
type GetInt = unsafe extern "C" fn(*mut c_int) -> c_int;
type DeviceGet = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type DeviceGetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
type DeviceTotalMem = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
type DeviceGetAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;

struct Calls {
    library: Library,
    init: Init,
    version: GetInt,
    count: GetInt,
    device: DeviceGet,
    name: DeviceGetName,
    memory: DeviceTotalMem,
    attribute: DeviceGetAttribute,
}

impl Driver {
    /// Queries the driver, whose library is in one of `folders` or where the system's loader finds it.
    ///
    /// # Errors
    /// [`GpuError`], with a remedy.
    pub fn probe(folders: &[PathBuf]) -> Result<Self, GpuError> {
        let calls = Calls::load(folders)?;
        let version = calls.version()?;
        if version < MIN_DRIVER {
            return Err(GpuError::OldDriver { found: version });
        }
        let gpus = calls.gpus()?;
        Ok(Self { library: calls.library.path().to_owned(), version, gpus })
    }
}

impl Calls {
    fn load(folders: &[PathBuf]) -> Result<Self, LibraryError> {
        let library = Library::open(NAME, folders)?;
        // SAFETY: the types are those of cuda.h, where these functions have not changed since CUDA 3.2, and the
        // library lives as long as they do.
        unsafe {
            Ok(Self {
                init: library.function("cuInit")?,
                version: library.function("cuDriverGetVersion")?,
                count: library.function("cuDeviceGetCount")?,
                device: library.function("cuDeviceGet")?,
                name: library.function("cuDeviceGetName")?,
                memory: library.function("cuDeviceTotalMem_v2")?,
                attribute: library.function("cuDeviceGetAttribute")?,
                library,
            })
        }
    }

    /// Works before `cuInit`, so that an old driver is reported as old and not as broken.
    fn version(&self) -> Result<Version, GpuError> {
        let mut version = 0;
        // SAFETY: the function writes one int.
        check("cuDriverGetVersion", unsafe { (self.version)(&raw mut version) })?;
        let version = u32::try_from(version).unwrap_or(0);
        Ok(Version { major: version / 1000, minor: version % 1000 / 10 })
    }

    fn gpus(&self) -> Result<Vec<Gpu>, GpuError> {
        // SAFETY: takes flags, of which there are none.
        match unsafe { (self.init)(0) } {
            NO_DEVICE => return Err(GpuError::NoGpu),
            code => check("cuInit", code)?,
        }
        let mut count = 0;
        // SAFETY: the function writes one int.
        check("cuDeviceGetCount", unsafe { (self.count)(&raw mut count) })?;
        if count < 1 {
            return Err(GpuError::NoGpu);
        }
        (0..count).map(|number| self.gpu(number)).collect()
    }

    fn gpu(&self, number: c_int) -> Result<Gpu, GpuError> {
        let mut device = 0;
        // SAFETY: the function writes one int.
        check("cuDeviceGet", unsafe { (self.device)(&raw mut device, number) })?;
        let mut name = [0u8; NAME_BYTES];
        // SAFETY: the function writes at most the given length, one less than the buffer has, so the last byte stays 0.
        let code = unsafe { (self.name)(name.as_mut_ptr().cast(), NAME_BYTES as c_int - 1, device) };
        check("cuDeviceGetName", code)?;
        let mut memory = 0usize;
        // SAFETY: the function writes one size_t.
        check("cuDeviceTotalMem", unsafe { (self.memory)(&raw mut memory, device) })?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the function writes one int.
            check("cuDeviceGetAttribute", unsafe { (self.attribute)(&raw mut value, which, device) })?;
            Ok::<_, GpuError>(u32::try_from(value).unwrap_or(0))
        };
        let capability = Version { major: attribute(CAPABILITY_MAJOR)?, minor: attribute(CAPABILITY_MINOR)? };
        let name = CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned());
        Ok(Gpu {
            number: u32::try_from(number).unwrap_or(0),
            name: name.unwrap_or_default(),
            capability,
            memory: memory as u64,
        })
    }
}
