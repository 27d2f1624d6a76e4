//! Simulated NVIDIA libraries (gpu-kernels/tests/simulated), compiled here with `cc`, and their controls.
#![allow(
    unsafe_code,
    reason = "the simulated libraries are controlled through C functions; each block says why it is sound"
)]

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::Library;
use tempfile::TempDir;

/// The simulated driver of this process. It has 16 GPUs, so that each test of a process can have its own.
#[derive(Debug)]
pub struct SimulatedDriver {
    folder: TempDir,
    library: Library,
}

/// The driver, compiled and loaded on first use.
pub fn simulated_driver() -> &'static SimulatedDriver {
    static DRIVER: OnceLock<SimulatedDriver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libcuda.so.1");
        compile("cuda.c", &path);
        // SAFETY: the library has no initialisers.
        let library = unsafe { Library::new(&path) }.unwrap();
        let driver = SimulatedDriver { folder, library };
        driver.set_gpus(16);
        driver
    })
}

/// Compiles a source of gpu-kernels/tests/simulated to a shared library at this path; it is loaded under its name.
pub fn compile(source: &str, library: &Path) {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu-kernels");
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let name = library.file_name().unwrap().to_string_lossy();
    let built = Command::new(&cc)
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-I"])
        .arg(crate_folder.join("kernels"))
        .arg(format!("-Wl,-soname,{name}"))
        .arg("-o")
        .arg(library)
        .arg(crate_folder.join("tests/simulated").join(source))
        .arg("-ldl")
        .output()
        .unwrap_or_else(|e| panic!("{cc}: {e}"));
    assert!(built.status.success(), "{cc}: {}", String::from_utf8_lossy(&built.stderr));
}

impl SimulatedDriver {
    /// The directory of its library, for `engine.library_folders`.
    pub fn folders(&self) -> Vec<PathBuf> {
        vec![self.folder.path().to_owned()]
    }

    fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: each caller names the type declared in cuda.c, and the library is never unloaded.
        unsafe { *self.library.get::<F>(name.as_bytes()).unwrap() }
    }

    fn about(&self, name: &str, gpu: u32) -> i32 {
        let ask: unsafe extern "C" fn(c_int) -> c_int = self.function(name);
        // SAFETY: takes a number and returns one.
        unsafe { ask(gpu as c_int) }
    }

    /// Queues a copy within a GPU's memory on a stream, as an engine would queue its work. `stream` is the driver's
    /// handle.
    pub fn copy_on_stream(&self, stream: usize, to: u64, from: u64, bytes: usize) {
        type Copy = unsafe extern "C" fn(*mut c_void, u64, u64, usize) -> c_int;
        let copy: Copy = self.function("weir_simulated_copy");
        let stream = std::ptr::with_exposed_provenance_mut(stream);
        // SAFETY: the simulated driver checks its arguments.
        assert_eq!(unsafe { copy(stream, to, from, bytes) }, 0);
    }

    /// Sets the number of GPUs.
    pub fn set_gpus(&self, count: u32) {
        let set: unsafe extern "C" fn(c_int) = self.function("weir_simulated_gpus");
        // SAFETY: takes a number.
        unsafe { set(count as c_int) };
    }

    /// Makes a call on a GPU return this code after `after` successful ones; with `sticky` all later ones as well.
    /// The call `kernel` fails when it runs on its stream.
    pub fn fail(&self, gpu: u32, call: &str, after: u32, code: i32, sticky: bool) {
        type Fail = unsafe extern "C" fn(c_int, *const c_char, c_long, c_int, c_int);
        let (fail, call): (Fail, _) = (self.function("weir_simulated_fail"), CString::new(call).unwrap());
        // SAFETY: the name is copied before the call returns.
        unsafe { fail(gpu as c_int, call.as_ptr(), c_long::from(after), code, c_int::from(sticky)) };
    }

    /// Cancels the pending faults of a GPU.
    pub fn heal(&self, gpu: u32) {
        let heal: unsafe extern "C" fn(c_int) = self.function("weir_simulated_heal");
        // SAFETY: takes a number.
        unsafe { heal(gpu as c_int) };
    }

    /// Sets a GPU's memory, in bytes.
    pub fn set_memory(&self, gpu: u32, bytes: u64) {
        let set: unsafe extern "C" fn(c_int, u64) = self.function("weir_simulated_limit");
        // SAFETY: takes numbers.
        unsafe { set(gpu as c_int, bytes) };
    }

    /// Delays each piece of work of a GPU by this much.
    pub fn slow_down(&self, gpu: u32, us: u32) {
        let set: unsafe extern "C" fn(c_int, c_int) = self.function("weir_simulated_slow");
        // SAFETY: takes numbers.
        unsafe { set(gpu as c_int, us as c_int) };
    }

    /// Number of invalid uses of the driver in this process so far.
    pub fn violations(&self) -> i32 {
        let ask: unsafe extern "C" fn() -> c_int = self.function("weir_simulated_violations");
        // SAFETY: takes nothing and returns a number.
        unsafe { ask() }
    }

    /// Number of kernels that a GPU has run.
    pub fn launches(&self, gpu: u32) -> u64 {
        let ask: unsafe extern "C" fn(c_int) -> u64 = self.function("weir_simulated_launches");
        // SAFETY: takes a number and returns one.
        unsafe { ask(gpu as c_int) }
    }

    /// Number of images passed to its kernels.
    pub fn images(&self, gpu: u32) -> u64 {
        let ask: unsafe extern "C" fn(c_int) -> u64 = self.function("weir_simulated_images");
        // SAFETY: takes a number and returns one.
        unsafe { ask(gpu as c_int) }
    }

    /// Number of unreleased memory blocks of a GPU, including pinned ones.
    pub fn blocks(&self, gpu: u32) -> i32 {
        self.about("weir_simulated_blocks", gpu)
    }

    /// Number of references to its context.
    pub fn users(&self, gpu: u32) -> i32 {
        self.about("weir_simulated_users", gpu)
    }
}
