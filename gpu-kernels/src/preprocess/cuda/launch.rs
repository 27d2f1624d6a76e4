//! The compiled kernel in a GPU's context, and its launch.
#![allow(unsafe_code, reason = "kernels are launched through C functions; each block says why it is sound")]

use std::ffi::CString;

use cudarc::driver::{result, sys};

use crate::cuda::{Device, DeviceMemory, GpuError, Stream, refused};
use crate::preprocess::{PreprocessSpec, TensorDescriptor, kernel};

/// The preprocess kernel on one GPU.
#[derive(Debug)]
pub(super) struct Kernel {
    module: sys::CUmodule,
    function: sys::CUfunction,
    device: Device,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Kernel {}

impl Kernel {
    pub(super) fn load(device: &Device) -> Result<Self, GpuError> {
        device.bind()?;
        // SAFETY: the image is a whole fatbin, as nvcc wrote it.
        let module = unsafe { result::module::load_data(kernel::FATBIN.as_ptr().cast()) };
        let module = refused("cuModuleLoadData", module)?;
        let mut loaded = Self { module, function: std::ptr::null_mut(), device: device.clone() };
        let name = CString::new(kernel::NAME).unwrap_or_default();
        // SAFETY: the module is loaded, and unloaded only when this value is dropped.
        let function = unsafe { result::module::get_function(module, name) };
        loaded.function = refused("cuModuleGetFunction", function)?;
        Ok(loaded)
    }

    /// Puts a launch for the first `images` descriptors on a stream.
    ///
    /// # Safety
    /// The descriptors say the truth of memory of this GPU, and it, they and the tensor stay until the stream has run this.
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        spec: &PreprocessSpec,
        descriptors: &DeviceMemory,
        images: u32,
        tensor: &TensorDescriptor,
    ) -> Result<(), GpuError> {
        self.device.bind()?;
        let (across, down) = kernel::grid(spec, images);
        let mut descriptors = descriptors.address();
        let mut tensor = *tensor;
        let mut parameters = [(&raw mut descriptors).cast(), (&raw mut tensor).cast()];
        // SAFETY: the parameters are those of weir_preprocess, which the driver copies before the call returns; the caller
        // vouches for what they point to.
        let launched = unsafe {
            result::launch_kernel(
                self.function,
                (across, down, 1),
                (kernel::THREADS, 1, 1),
                0,
                stream.0.cu_stream(),
                &mut parameters,
            )
        };
        refused("cuLaunchKernel", launched)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the module was loaded by this value. Launches that have not run keep it in the driver.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}
