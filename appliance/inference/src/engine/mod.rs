//! ONNX Runtime: locates the library, loads it once, and creates sessions for verified variants.

mod binding;
mod bound;
mod cache;
mod device;
mod error;
mod graph;
mod libraries;
mod provider;
mod scores;
mod session;

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

pub use bound::{BoundSession, SlotMemory};
pub use cache::EngineCache;
pub use device::{DeviceChoice, DeviceKind, DeviceRequest, choose as choose_device, load_runtime};
pub use error::EngineError;
pub use graph::{Graph, Port};
pub use libraries::{GpuLibraries, LIBRARY_NAME, MissingLibraries, candidates as library_candidates};
pub use provider::{Profile, Provider, ProviderSettings, StreamHandle};
pub use session::Classifier;

static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

/// ONNX Runtime, loaded once per process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: ort::environment::Environment,
    library: Arc<Path>,
}

impl Runtime {
    /// Locates libonnxruntime (`configured`, then ORT_DYLIB_PATH, then beside the executable) and loads it.
    ///
    /// # Errors
    /// [`EngineError::LibraryMissing`] with every searched path; [`EngineError::LibraryUnusable`] if the file is not a usable
    /// ONNX Runtime. There is no fallback from a configured path.
    pub fn load(configured: Option<&Path>) -> Result<Self, EngineError> {
        let library = libraries::find_runtime(configured)?;
        // ONNX Runtime allows one environment per process, so later calls share the first one.
        let mut loaded = LOADED.lock();
        if let Some(runtime) = loaded.as_ref() {
            return Ok(runtime.clone());
        }
        let unusable = |reason: String| EngineError::LibraryUnusable { path: library.clone(), reason };
        let environment = ort::init_from(&library)
            .map_err(|e| unusable(e.to_string()))?
            .with_name("weir")
            .with_telemetry(false)
            .with_logger(Arc::new(log_line))
            .build()
            .map_err(|e| unusable(e.to_string()))?;
        let runtime = Self { environment, library: library.into() };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }

    /// The loaded library file.
    pub fn library(&self) -> &Path {
        &self.library
    }

    pub(crate) fn environment(&self) -> &ort::environment::Environment {
        &self.environment
    }
}

fn log_line(level: ort::logging::LogLevel, category: &str, _id: &str, _location: &str, message: &str) {
    use ort::logging::LogLevel;
    match level {
        LogLevel::Verbose | LogLevel::Info => tracing::trace!(target: "onnxruntime", category, "{message}"),
        LogLevel::Warning => tracing::debug!(target: "onnxruntime", category, "{message}"),
        LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "onnxruntime", category, "{message}"),
    }
}
