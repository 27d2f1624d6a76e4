//! The compiled preprocess kernel, and how it is launched. `make kernels` compiles it.

use super::PreprocessSpec;

/// Machine code for compute capabilities 7.5, 8.0, 8.6, 8.9 and 9.0, and PTX that later ones compile for themselves.
pub const FATBIN: &[u8] = include_bytes!("../../kernels/preprocess.fatbin");

/// Name of the kernel: its parameters are the address of the image descriptors and a
/// [`TensorDescriptor`](super::TensorDescriptor).
pub const NAME: &str = "weir_preprocess";

/// Threads of a block.
pub const THREADS: u32 = 256;

/// Output pixels of a block.
const TILE: (u32, u32) = (32, 16);

/// Blocks across and down the grid for so many images: the tiles of a window, and the images.
pub fn grid(spec: &PreprocessSpec, images: u32) -> (u32, u32) {
    (spec.crop.div_ceil(TILE.0) * spec.crop.div_ceil(TILE.1), images)
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
        let header = include_str!("../../kernels/preprocess.h");
        let defined = |name: &str| -> u32 {
            let line = header.lines().find_map(|line| line.strip_prefix(&format!("#define {name} ")));
            line.unwrap().parse().unwrap()
        };
        assert_eq!(TILE, (defined("WEIR_TILE_WIDTH"), defined("WEIR_TILE_HEIGHT")));
        assert_eq!(THREADS, defined("WEIR_TILE_WIDTH") * defined("WEIR_STRIP"));
        assert!(include_str!("../../kernels/preprocess.cu").contains(NAME));
        let name = NAME.as_bytes();
        assert!(FATBIN.windows(name.len()).any(|window| window == name), "the fatbin has another kernel");
        let spec = |crop| PreprocessSpec { resize: 4096, crop, mean: [0.0; 3], std: [1.0; 3] };
        assert_eq!(grid(&spec(224), 64), (7 * 14, 64));
        assert_eq!(grid(&spec(33), 1), (2 * 3, 1));
    }
}
