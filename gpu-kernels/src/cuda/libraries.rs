//! The libraries that serve on a GPU: what each is for, where it is looked for, and what installs it.

use std::path::PathBuf;

/// What a library is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryUse {
    /// JPEGs decoded on the GPU; without it the CPU decodes them.
    Decode,
    /// Inference through ONNX Runtime's CUDA provider.
    Cuda,
    /// Inference through ONNX Runtime's TensorRT provider.
    Tensorrt,
    /// Utilisation, memory, temperature and power in metrics.
    Monitoring,
}

/// A library that is needed for a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeededLibrary {
    /// File name.
    pub name: &'static str,
    /// What it is for.
    pub used_for: LibraryUse,
    /// The command that installs it, or where it comes from.
    pub install: &'static str,
}

const fn needed(name: &'static str, used_for: LibraryUse, install: &'static str) -> NeededLibrary {
    NeededLibrary { name, used_for, install }
}

const ONNXRUNTIME: &str = "pip install onnxruntime-gpu==1.31.1";
const TENSORRT: &str = "TensorRT 10 for CUDA 13, from NVIDIA's own package index";
const CUBLAS: &str = "pip install nvidia-cublas";

/// All of them, for CUDA 13, each behind those that it needs itself. The providers' needs are those of onnxruntime-gpu 1.31.1, as
/// its files name them; cuDNN they load only when they compute.
pub const LIBRARIES: [NeededLibrary; 11] = [
    needed("libnvjpeg.so.13", LibraryUse::Decode, "pip install nvidia-nvjpeg"),
    needed("libonnxruntime_providers_cuda.so", LibraryUse::Cuda, ONNXRUNTIME),
    needed("libcudart.so.13", LibraryUse::Cuda, "pip install nvidia-cuda-runtime"),
    needed("libcublasLt.so.13", LibraryUse::Cuda, CUBLAS),
    needed("libcublas.so.13", LibraryUse::Cuda, CUBLAS),
    needed("libcurand.so.10", LibraryUse::Cuda, "pip install nvidia-curand"),
    needed("libcudnn.so.9", LibraryUse::Cuda, "pip install nvidia-cudnn-cu13"),
    needed("libonnxruntime_providers_tensorrt.so", LibraryUse::Tensorrt, ONNXRUNTIME),
    needed("libnvinfer.so.10", LibraryUse::Tensorrt, TENSORRT),
    needed("libnvonnxparser.so.10", LibraryUse::Tensorrt, TENSORRT),
    needed("libnvidia-ml.so.1", LibraryUse::Monitoring, "it comes with the NVIDIA driver"),
];

/// Where the system keeps libraries, and CUDA's own installer.
const SYSTEM: [&str; 7] = [
    "/usr/local/cuda/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/lib",
];

/// The folders that are looked at, best first: each configured one, what lies in it as PyPI's wheels lay it out
/// (`nvidia/*/lib`, `onnxruntime/capi`), the folders of LD_LIBRARY_PATH, and the system's.
pub fn library_folders(configured: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for folder in configured {
        folders.push(folder.clone());
        folders.push(folder.join("onnxruntime/capi"));
        let mut wheels: Vec<PathBuf> = std::fs::read_dir(folder.join("nvidia"))
            .map(|entries| entries.flatten().map(|entry| entry.path().join("lib")).collect())
            .unwrap_or_default();
        wheels.sort();
        folders.extend(wheels);
    }
    if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
        folders.extend(std::env::split_paths(&path).filter(|folder| !folder.as_os_str().is_empty()));
    }
    folders.extend(SYSTEM.map(PathBuf::from));
    folders.retain(|folder| folder.is_dir());
    folders
}

/// The first of the folders that has a file of this name.
pub fn find_library(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}
