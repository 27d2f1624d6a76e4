//! The libraries that serve on a GPU: found before anything is loaded, and loaded in the order in which they need each other.

use std::path::{Path, PathBuf};

use gpu_kernels::cuda::{
    LIBRARIES, LibraryError, LibraryUse, NeededLibrary, find_library, library_folders, preload_library,
};

use super::DeviceRequest;
use super::locate::{LIBRARY_NAME, candidates};

const CUDA_PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// What was found.
#[derive(Clone, Debug)]
pub struct GpuLibraries {
    /// The ONNX Runtime that has the providers beside it.
    pub onnxruntime: PathBuf,
    /// What the providers need, in the order in which it is loaded.
    pub needed: Vec<PathBuf>,
}

/// What was not.
#[derive(Debug, thiserror::Error)]
pub enum MissingLibraries {
    /// Libraries are nowhere.
    #[error("{} {} missing", list(.0), if .0.len() == 1 { "is" } else { "are" })]
    Nowhere(Vec<NeededLibrary>),
    /// There is an ONNX Runtime, but no provider beside it.
    #[error("{} has no {CUDA_PROVIDER} beside it: it is ONNX Runtime for the CPU", .0.display())]
    ForCpu(PathBuf),
    /// There are providers, but no ONNX Runtime beside them.
    #[error("there is no {LIBRARY_NAME} beside {}", .0.display())]
    NoRuntime(PathBuf),
}

fn list(libraries: &[NeededLibrary]) -> String {
    libraries.iter().map(|library| library.name).collect::<Vec<_>>().join(", ")
}

impl MissingLibraries {
    /// What to do about it.
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
    /// Finds what these uses need. Nothing is loaded.
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

    /// Loads what the providers need, which they then find wherever it lies.
    pub(super) fn preload(&self) -> Result<(), LibraryError> {
        self.needed.iter().try_for_each(|path| preload_library(path))
    }
}

/// The ONNX Runtime with providers: the configured one; or of the folders; or one that would be used for the CPU too.
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

/// libonnxruntime in `engine.library_folders` or the system's own, for the CPU.
pub(super) fn runtime_in_folders(configured: &[PathBuf]) -> Option<PathBuf> {
    library_folders(configured).iter().find_map(|folder| runtime_in(folder))
}

/// libonnxruntime in a folder, with or without a version behind its name, as PyPI's wheel has it.
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
