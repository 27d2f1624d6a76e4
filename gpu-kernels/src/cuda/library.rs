//! A shared library that is loaded at run time, and its functions.
#![allow(unsafe_code, reason = "libraries are loaded at run time; each block says why it is sound")]

use std::error::Error;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::find_library;

/// Why a library can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// It is nowhere.
    #[error("{name} is not on this machine")]
    Missing {
        /// File name.
        name: String,
    },
    /// There is such a file, but it does not load: damaged, for another machine, or without what it depends on.
    #[error("{} can't be loaded: {reason}", path.display())]
    Unusable {
        /// The file, or its name where the system's loader found it.
        path: PathBuf,
        /// The loader's own words.
        reason: String,
    },
    /// It lacks a function, so it is of another version, or no such library at all.
    #[error("{} has no function {function}: it is too old, or not the library of that name", path.display())]
    NoFunction {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        function: &'static str,
    },
}

/// A loaded library. It stays loaded while this lives.
#[derive(Debug)]
pub(crate) struct Library {
    library: libloading::Library,
    path: PathBuf,
}

/// What is never unloaded: others that are loaded later find it by its name.
static PRELOADED: Mutex<Vec<Library>> = Mutex::new(Vec::new());

/// Loads the library of this path for as long as the process runs. Whoever needs it later by its name gets this one, wherever
/// it lies.
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
    /// Loads `name` from the first of the folders that has it, else from where the system's loader finds it. A file that
    /// is there but does not load is an error: another one would hide what is wrong.
    pub(crate) fn open(name: &str, folders: &[PathBuf]) -> Result<Self, LibraryError> {
        let path = find_library(name, folders).unwrap_or_else(|| PathBuf::from(name));
        // SAFETY: the initialisers of the libraries that are opened here, NVIDIA's, may run on any thread and at any
        // time. What a file of that name holds otherwise is up to whoever may write to the loader's folders.
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
    /// `F` must be the function's type, and it must not be called when this library is gone.
    pub(crate) unsafe fn function<F: Copy>(&self, function: &'static str) -> Result<F, LibraryError> {
        // SAFETY: the caller vouches for the type.
        let symbol = unsafe { self.library.get::<F>(function.as_bytes()) };
        symbol
            .map(|symbol| *symbol)
            .map_err(|_| LibraryError::NoFunction { path: self.path.clone(), function })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
