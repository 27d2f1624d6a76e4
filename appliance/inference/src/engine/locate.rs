//! Where libonnxruntime is looked for, in order of precedence.

use std::path::{Path, PathBuf};

use super::EngineError;

/// The library's file name on this platform.
pub const LIBRARY_NAME: &str = if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else if cfg!(windows) {
    "onnxruntime.dll"
} else {
    "libonnxruntime.so"
};

/// Every place that is looked at, best first, each with the reason why: `engine.onnxruntime`, ORT_DYLIB_PATH, the
/// executable's folder and the `lib` folder beside it. An explicit setting shuts out those after it.
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

/// The first candidate that is a file. A folder given by hand stands for the library in it.
pub(super) fn find(configured: Option<&Path>) -> Result<PathBuf, EngineError> {
    let candidates = candidates(configured);
    for (path, _) in &candidates {
        let path = if path.is_dir() { path.join(LIBRARY_NAME) } else { path.clone() };
        if path.is_file() {
            return Ok(path);
        }
    }
    let looked = candidates.iter().map(|(path, why)| format!("{} ({why})", path.display()));
    Err(EngineError::LibraryMissing { looked: looked.collect::<Vec<_>>().join(", ") })
}
