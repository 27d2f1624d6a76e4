//! Which TensorRT there is: engines that one version has built no other takes.
#![allow(unsafe_code, reason = "the library is asked through a C function; the block says why it is sound")]

use std::ffi::c_int;
use std::path::PathBuf;

use super::library::{Library, LibraryError};

const NAME: &str = "libnvinfer.so.10";

/// Version of TensorRT's library, which is in one of `folders` or where the system's loader finds it: `10.14.1`.
///
/// # Errors
/// [`LibraryError`].
pub fn tensorrt_version(folders: &[PathBuf]) -> Result<String, LibraryError> {
    let library = Library::open(NAME, folders)?;
    // SAFETY: the type is that of NvInferRuntime.h, and the library lives as long as this call.
    let version = unsafe { (library.function::<unsafe extern "C" fn() -> c_int>("getInferLibVersion")?)() };
    // TensorRT 10 counts 10000 a major version, 100 a minor one.
    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}
