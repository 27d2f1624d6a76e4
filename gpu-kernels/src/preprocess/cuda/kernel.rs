//! The compiled preprocess kernel (built by `make kernels`), and its launch.
#![allow(unsafe_code, reason = "kernels are launched through C functions; each block says why it is sound")]

use std::ffi::CString;

use cudarc::driver::{result, sys};

use crate::cuda::{Device, DeviceMemory, GpuError, Stream, refused};
use crate::preprocess::{PreprocessSpec, TensorDescriptor};

/// Machine code for compute capabilities 7.5, 8.0, 8.6, 8.9 and 9.0, and PTX for later ones.
const FATBIN: &[u8] = include_bytes!("../../../kernels/preprocess.fatbin");

/// Name of the kernel. Its parameters are the address of the image descriptors and a [`TensorDescriptor`].
const NAME: &str = "weir_preprocess";

/// Threads per block.
const THREADS: u32 = 256;

/// Output pixels of a block: width, height.
const TILE: (u32, u32) = (32, 16);

/// Grid for `images` images: the tiles of a window, and the images.
fn grid(spec: &PreprocessSpec, images: u32) -> (u32, u32) {
    (spec.crop.div_ceil(TILE.0) * spec.crop.div_ceil(TILE.1), images)
}

/// The preprocess kernel in a GPU's context.
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
        // SAFETY: the image is a complete fatbin, as written by nvcc.
        let module = unsafe { result::module::load_data(FATBIN.as_ptr().cast()) };
        let module = refused("cuModuleLoadData", module)?;
        let mut loaded = Self { module, function: std::ptr::null_mut(), device: device.clone() };
        let name = CString::new(NAME).unwrap_or_default();
        // SAFETY: the module is loaded, and unloaded only when this value is dropped.
        let function = unsafe { result::module::get_function(module, name) };
        loaded.function = refused("cuModuleGetFunction", function)?;
        Ok(loaded)
    }

    /// Submits a launch for the first `images` descriptors to a stream.
    ///
    /// # Safety
    /// The descriptors describe memory of this GPU correctly; that memory, the descriptors and the tensor live until the
    /// stream has run the launch.
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        spec: &PreprocessSpec,
        descriptors: &DeviceMemory,
        images: u32,
        tensor: &TensorDescriptor,
    ) -> Result<(), GpuError> {
        self.device.bind()?;
        let (across, down) = grid(spec, images);
        let mut descriptors = descriptors.address();
        let mut tensor = *tensor;
        let mut parameters = [(&raw mut descriptors).cast(), (&raw mut tensor).cast()];
        // SAFETY: the parameters are those of weir_preprocess, which the driver copies before the call returns; the caller
        // guarantees what they point to.
        let launched = unsafe {
            result::launch_kernel(
                self.function,
                (across, down, 1),
                (THREADS, 1, 1),
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_compiled_kernel_is_that_of_its_sources() {
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let listed = std::fs::read_to_string(kernels.join("kernels.sha256")).unwrap();
        let mut files = Vec::new();
        for line in listed.lines() {
            let (expected, file) = line.split_once("  ").unwrap();
            let digest = Sha256::digest(std::fs::read(kernels.join(file)).unwrap());
            let found: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(
                found, expected,
                "{file} has changed since the kernel was compiled: run `make kernels`"
            );
            files.push(file);
        }
        assert_eq!(files, ["preprocess.h", "preprocess.cu", "preprocess.fatbin"]);
    }

    #[test]
    fn launch_and_source_agree() {
        let header = include_str!("../../../kernels/preprocess.h");
        let defined = |name: &str| -> u32 {
            let line = header.lines().find_map(|line| line.strip_prefix(&format!("#define {name} ")));
            line.unwrap().parse().unwrap()
        };
        assert_eq!(TILE, (defined("WEIR_TILE_WIDTH"), defined("WEIR_TILE_HEIGHT")));
        assert_eq!(THREADS, defined("WEIR_TILE_WIDTH") * defined("WEIR_STRIP"));
        assert!(include_str!("../../../kernels/preprocess.cu").contains(NAME));
        let name = NAME.as_bytes();
        assert!(FATBIN.windows(name.len()).any(|window| window == name), "the fatbin has another kernel");
        let spec = |crop| PreprocessSpec { resize: 4096, crop, mean: [0.0; 3], std: [1.0; 3] };
        assert_eq!(grid(&spec(224), 64), (7 * 14, 64));
        assert_eq!(grid(&spec(33), 1), (2 * 3, 1));
    }
}
