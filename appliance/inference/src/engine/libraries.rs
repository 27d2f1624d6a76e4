//! Shared libraries: where ONNX Runtime is searched for, in order of precedence, and those that a GPU needs, which are located
//! before anything is loaded, and loaded in the order of their dependencies.

use std::path::{Path, PathBuf};

use gpu_kernels::cuda::{
    LIBRARIES, LibraryError, LibraryUse, NeededLibrary, find_library, library_folders, preload_library,
};

use super::{DeviceRequest, EngineError};

/// The library's file name on this platform.
pub const LIBRARY_NAME: &str = if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else if cfg!(windows) {
    "onnxruntime.dll"
} else {
    "libonnxruntime.so"
};

const CUDA_PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// The libraries for a GPU.
#[derive(Clone, Debug)]
pub struct GpuLibraries {
    /// The ONNX Runtime library with the providers beside it.
    pub onnxruntime: PathBuf,
    /// Dependencies of the providers, in load order.
    pub needed: Vec<PathBuf>,
}

/// Which libraries are missing.
#[derive(Debug, thiserror::Error)]
pub enum MissingLibraries {
    /// Libraries were not found.
    #[error("{} {} missing", list(.0), if .0.len() == 1 { "is" } else { "are" })]
    Nowhere(Vec<NeededLibrary>),
    /// There is an ONNX Runtime, but without the provider beside it.
    #[error("{} has no {CUDA_PROVIDER} beside it: it is ONNX Runtime for the CPU", .0.display())]
    ForCpu(PathBuf),
    /// There is a provider, but without an ONNX Runtime beside it.
    #[error("there is no {LIBRARY_NAME} beside {}", .0.display())]
    NoRuntime(PathBuf),
}

fn list(libraries: &[NeededLibrary]) -> String {
    libraries.iter().map(|library| library.name).collect::<Vec<_>>().join(", ")
}

impl MissingLibraries {
    /// How to fix it.
    pub(super) fn remedy(&self) -> String {
        let install = match self {
            Self::Nowhere(libraries) => {
                let mut commands: Vec<&str> = Vec::new();
                for library in libraries {
                    if !commands.contains(&library.install) {
                        commands.push(library.install);
                    }
                }
                commands.join("; ")
            }
            Self::ForCpu(_) | Self::NoRuntime(_) => "pip install onnxruntime-gpu==1.31.1".to_owned(),
        };
        format!("install what is missing ({install}) and name its folder in engine.library_folders")
    }
}

impl GpuLibraries {
    /// Locates the libraries for these uses. Nothing is loaded.
    pub(super) fn find(request: &DeviceRequest, uses: &[LibraryUse]) -> Result<Self, MissingLibraries> {
        let folders = library_folders(&request.folders);
        let onnxruntime = onnxruntime(request, &folders)?;
        let beside = onnxruntime.parent().map(Path::to_path_buf);
        let places: Vec<PathBuf> = beside.into_iter().chain(folders).collect();
        let (mut needed, mut missing) = (Vec::new(), Vec::new());
        for library in LIBRARIES.iter().filter(|library| uses.contains(&library.used_for)) {
            match find_library(library.name, &places) {
                // ONNX Runtime loads its providers itself.
                Some(path) if !library.name.starts_with("libonnxruntime") => needed.push(path),
                Some(_) => {}
                None => missing.push(*library),
            }
        }
        if missing.is_empty() {
            Ok(Self { onnxruntime, needed })
        } else {
            Err(MissingLibraries::Nowhere(missing))
        }
    }

    /// Loads the dependencies of the providers, which then find them by name.
    pub(super) fn preload(&self) -> Result<(), LibraryError> {
        self.needed.iter().try_for_each(|path| preload_library(path))
    }
}

/// The ONNX Runtime with providers: the configured one, else one in the folders, else one that would be used for the CPU.
fn onnxruntime(request: &DeviceRequest, folders: &[PathBuf]) -> Result<PathBuf, MissingLibraries> {
    if let Some(configured) = &request.onnxruntime {
        let path = if configured.is_dir() { runtime_in(configured) } else { Some(configured.clone()) };
        let path = path.unwrap_or_else(|| configured.clone());
        let has_provider = path.parent().is_some_and(|folder| folder.join(CUDA_PROVIDER).is_file());
        return if has_provider { Ok(path) } else { Err(MissingLibraries::ForCpu(path)) };
    }
    let cpus: Vec<PathBuf> =
        candidates(None).into_iter().map(|(path, _)| path).filter(|path| path.is_file()).collect();
    let beside = cpus.iter().filter_map(|path| path.parent().map(Path::to_path_buf));
    let places: Vec<PathBuf> = folders.iter().cloned().chain(beside).collect();
    match find_library(CUDA_PROVIDER, &places) {
        Some(provider) => {
            let folder = provider.parent().map(Path::to_path_buf).unwrap_or_default();
            runtime_in(&folder).ok_or(MissingLibraries::NoRuntime(provider))
        }
        None => match cpus.into_iter().next() {
            Some(path) => Err(MissingLibraries::ForCpu(path)),
            None => Err(MissingLibraries::Nowhere(provider_library())),
        },
    }
}

fn provider_library() -> Vec<NeededLibrary> {
    LIBRARIES.into_iter().filter(|library| library.name == CUDA_PROVIDER).collect()
}

/// libonnxruntime for the CPU in `engine.library_folders` or the system's folders.
pub(super) fn runtime_in_folders(configured: &[PathBuf]) -> Option<PathBuf> {
    library_folders(configured).iter().find_map(|folder| runtime_in(folder))
}

/// libonnxruntime in a folder, with or without a version suffix as in PyPI's wheel.
fn runtime_in(folder: &Path) -> Option<PathBuf> {
    let plain = folder.join(LIBRARY_NAME);
    if plain.is_file() {
        return Some(plain);
    }
    let versioned = format!("{LIBRARY_NAME}.");
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&versioned))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.pop()
}

/// The paths to search, in order, each with its source: `engine.onnxruntime`, ORT_DYLIB_PATH, the executable's folder and the
/// `lib` folder beside it. An explicit setting excludes those after it.
pub fn candidates(configured: Option<&Path>) -> Vec<(PathBuf, &'static str)> {
    if let Some(path) = configured {
        return vec![(path.to_path_buf(), "engine.onnxruntime")];
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()) {
        return vec![(PathBuf::from(path), "ORT_DYLIB_PATH")];
    }
    let Some(folder) = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf))
    else {
        return Vec::new();
    };
    vec![
        (folder.join(LIBRARY_NAME), "beside the executable"),
        (folder.join("../lib").join(LIBRARY_NAME), "lib folder beside the executable's"),
    ]
}

/// The first candidate that is a file. A configured folder stands for the library in it.
pub(super) fn find_runtime(configured: Option<&Path>) -> Result<PathBuf, EngineError> {
    let candidates = candidates(configured);
    for (path, _) in &candidates {
        let path = if path.is_dir() { path.join(LIBRARY_NAME) } else { path.clone() };
        if path.is_file() {
            return Ok(path);
        }
    }
    let searched = candidates.iter().map(|(path, why)| format!("{} ({why})", path.display()));
    Err(EngineError::LibraryMissing { searched: searched.collect::<Vec<_>>().join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::engine::Runtime;

    #[test]
    fn a_configured_library_shuts_out_the_others() {
        let places = candidates(Some(Path::new("/opt/ort/libonnxruntime.so")));
        assert_eq!(places.len(), 1);
        assert_eq!(places[0].1, "engine.onnxruntime");
    }

    #[test]
    fn a_configured_library_that_is_not_there_is_an_error_with_the_remedy() {
        let error = Runtime::load(Some(Path::new("/nowhere/libonnxruntime.so"))).unwrap_err();
        assert!(matches!(error, EngineError::LibraryMissing { .. }));
        assert!(error.to_string().contains("/nowhere/libonnxruntime.so (engine.onnxruntime)"), "{error}");
        assert!(error.to_string().contains("Remedy"), "{error}");
    }
}
