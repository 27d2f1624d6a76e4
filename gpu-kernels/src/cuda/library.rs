//! The shared libraries for GPUs: what each is needed for, where it is searched for, and how it is loaded.
#![allow(unsafe_code, reason = "libraries are loaded at run time; each block says why it is sound")]

use std::error::Error;
use std::ffi::c_int;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// What a library is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryUse {
    /// JPEG decoding on the GPU; without it the CPU decodes them.
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
    /// What it is needed for.
    pub used_for: LibraryUse,
    /// The command that installs it, or its source.
    pub install: &'static str,
}

const fn needed(name: &'static str, used_for: LibraryUse, install: &'static str) -> NeededLibrary {
    NeededLibrary { name, used_for, install }
}

const ONNXRUNTIME: &str = "pip install onnxruntime-gpu==1.31.1";
const TENSORRT: &str = "TensorRT 10 for CUDA 13, from NVIDIA's own package index";
const CUBLAS: &str = "pip install nvidia-cublas";

/// All libraries, for CUDA 13, each after its dependencies. The dependencies of the providers are those of onnxruntime-gpu
/// 1.31.1; cuDNN is loaded lazily.
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

/// Folders of the system, and of CUDA's installer.
const SYSTEM: [&str; 7] = [
    "/usr/local/cuda/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/lib",
];

/// The folders to search, in order: each configured one, its subfolders in the layout of PyPI's wheels (`nvidia/*/lib`,
/// `onnxruntime/capi`), the folders in LD_LIBRARY_PATH, and the system's.
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

/// The path of this file name in the first folder that has it.
pub fn find_library(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Why a library can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The library was not found.
    #[error("{name} is not on this machine")]
    Missing {
        /// File name.
        name: String,
    },
    /// The file exists, but does not load: it is damaged, for another architecture, or lacks a dependency.
    #[error("{} can't be loaded: {reason}", path.display())]
    Unusable {
        /// Path of the file, or its name if the system's loader found it.
        path: PathBuf,
        /// The loader's message.
        reason: String,
    },
    /// A function is missing, so the library has another version or is another library.
    #[error("{} has no function {function}: it is too old, or not the library of that name", path.display())]
    NoFunction {
        /// The file.
        path: PathBuf,
        /// The missing function.
        function: &'static str,
    },
}

/// A loaded library; unloaded when dropped.
#[derive(Debug)]
pub(crate) struct Library {
    library: libloading::Library,
    path: PathBuf,
}

/// Libraries that are never unloaded: others that are loaded later find them by name.
static PRELOADED: Mutex<Vec<Library>> = Mutex::new(Vec::new());

/// Loads the library at this path for the lifetime of the process. Other libraries that depend on its name get this one.
///
/// # Errors
/// [`LibraryError::Unusable`].
pub fn preload_library(path: &Path) -> Result<(), LibraryError> {
    let mut preloaded = PRELOADED.lock();
    if preloaded.iter().all(|library| library.path != path) {
        let name = path.to_string_lossy();
        preloaded.push(Library::open(&name, &[])?);
    }
    Ok(())
}

impl Library {
    /// Loads `name` from the first folder that has it, else by the system's loader. A file that does not load is an error: a
    /// fallback would hide it.
    pub(crate) fn open(name: &str, folders: &[PathBuf]) -> Result<Self, LibraryError> {
        let path = find_library(name, folders).unwrap_or_else(|| PathBuf::from(name));
        // SAFETY: the initialisers of the libraries that are opened here, NVIDIA's, may run on any thread and at any time. The
        // content of other files of these names is the responsibility of those with write access to the loader's folders.
        match unsafe { libloading::Library::new(&path) } {
            Ok(library) => Ok(Self { library, path }),
            Err(error) => {
                let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                let missing = format!("{name}: cannot open shared object file: No such file");
                if path == Path::new(name) && reason.contains(&missing) {
                    return Err(LibraryError::Missing { name: name.to_owned() });
                }
                Err(LibraryError::Unusable { path, reason })
            }
        }
    }

    /// The address of a function.
    ///
    /// # Safety
    /// `F` must be the function's type, and must not be called after this library was dropped.
    pub(crate) unsafe fn function<F: Copy>(&self, function: &'static str) -> Result<F, LibraryError> {
        // SAFETY: the caller guarantees the type.
        let symbol = unsafe { self.library.get::<F>(function.as_bytes()) };
        symbol
            .map(|symbol| *symbol)
            .map_err(|_| LibraryError::NoFunction { path: self.path.clone(), function })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

const TENSORRT_LIBRARY: &str = "libnvinfer.so.10";

/// Version of the TensorRT library in one of `folders` or found by the system's loader, such as `10.14.1`.
///
/// # Errors
/// [`LibraryError`].
pub fn tensorrt_version(folders: &[PathBuf]) -> Result<String, LibraryError> {
    let library = Library::open(TENSORRT_LIBRARY, folders)?;
    // SAFETY: the type is that of NvInferRuntime.h, and the library lives as long as this call.
    let version = unsafe { (library.function::<unsafe extern "C" fn() -> c_int>("getInferLibVersion")?)() };
    // TensorRT 10 encodes a version as 10000 * major + 100 * minor + patch.
    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}
