//! The simulated libnvjpeg of simulated.c, built with `cc`, which decodes through libjpeg-turbo.
//!
//! Other test targets include it with `#[path]`; it needs `libloading`, `tempfile` and `turbojpeg`.
#![allow(unsafe_code, reason = "C functions of a library made for the tests")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use turbojpeg::{Decompressor, YuvImage, yuv_pixels_len};

const BAD_JPEG: c_int = 3;

/// A separate libnvjpeg.so.13 in its own folder, ready to decode in host memory.
pub(crate) struct Simulated {
    library: libloading::Library,
    folder: tempfile::TempDir,
}

/// Compiles a shared library.
pub(crate) fn compile(source: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (file, library) = (folder.path().join("source.c"), folder.path().join("library.so"));
    std::fs::write(&file, source).unwrap();
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = Command::new(cc);
    command.args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o"]);
    let built = command.arg(&library).arg(&file).arg("-ldl").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    std::fs::read(library).unwrap()
}

impl Simulated {
    pub(crate) fn new() -> Self {
        static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libnvjpeg.so.13");
        std::fs::write(&path, BUILT.get_or_init(|| compile(include_str!("simulated.c")))).unwrap();
        // SAFETY: the library has no initialisers.
        let library = unsafe { libloading::Library::new(&path) }.unwrap();
        let simulated = Self { library, folder };
        simulated.call::<unsafe extern "C" fn(Decode), _>("weir_simulated_set_decoder", |set| {
            // SAFETY: the function is of that type, and lives as long as the program.
            unsafe { set(decode) }
        });
        simulated
    }

    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        vec![self.folder.path().to_owned()]
    }

    /// The `nth` next call of a function, counted from 1, returns `status`.
    pub(crate) fn fail(&self, function: &str, nth: i32, status: i32) {
        let function = CString::new(function).unwrap();
        type Fail = unsafe extern "C" fn(*const c_char, c_int, c_int);
        // SAFETY: takes a string, which it copies, and two numbers.
        self.call("weir_simulated_fail", |fail: Fail| unsafe { fail(function.as_ptr(), nth, status) });
    }

    /// Sets the number of JPEG engines of the GPU.
    pub(crate) fn set_engines(&self, engines: i32, cores: i32) {
        type Set = unsafe extern "C" fn(c_int, c_int);
        // SAFETY: takes two numbers.
        self.call("weir_simulated_set_engines", |set: Set| unsafe { set(engines, cores) });
    }

    /// Objects of nvJPEG that were created and not destroyed.
    pub(crate) fn live(&self) -> i32 {
        self.number("weir_simulated_live")
    }

    /// Number of initialisations of a state for a batch.
    pub(crate) fn initialisations(&self) -> i32 {
        self.number("weir_simulated_initialisations")
    }

    /// Images whose decoding failed after it was queued.
    pub(crate) fn failed_jobs(&self) -> i32 {
        self.number("weir_simulated_failed_jobs")
    }

    /// Fails if an object is left, or nvJPEG was called incorrectly.
    pub(crate) fn check(&self) {
        type Violation = unsafe extern "C" fn() -> *const c_char;
        let violation = self.call("weir_simulated_violation", |violation: Violation| {
            // SAFETY: takes nothing, and returns a string that the library keeps, or null.
            let text = unsafe { violation() };
            // SAFETY: it is not null here, and nothing writes it meanwhile.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_owned())
        });
        assert_eq!(violation, None);
        assert_eq!(self.live(), 0, "handles, states and streams are left");
    }

    fn number(&self, function: &str) -> i32 {
        // SAFETY: takes nothing and returns an int.
        self.call(function, |get: unsafe extern "C" fn() -> c_int| unsafe { get() })
    }

    fn call<F: Copy, T>(&self, function: &str, call: impl FnOnce(F) -> T) -> T {
        // SAFETY: each caller names a function of simulated.c with its type; the library outlives the call.
        call(*unsafe { self.library.get::<F>(function.as_bytes()) }.unwrap())
    }
}

/// A plane without padding.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plane {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) pixels: Vec<u8>,
}

/// The planes of a JPEG, from libjpeg-turbo.
pub(crate) fn planes_of(jpeg: &[u8]) -> Result<Vec<Plane>, turbojpeg::Error> {
    let mut decompressor = Decompressor::new()?;
    let header = decompressor.read_header(jpeg)?;
    let (width, height, subsamp) = (header.width, header.height, header.subsamp);
    let pixels = vec![0; yuv_pixels_len(width, 1, height, subsamp)?];
    let mut image = YuvImage { pixels, width, align: 1, height, subsamp };
    decompressor.decompress_to_yuv(jpeg, image.as_deref_mut())?;
    let chroma = (width.div_ceil(subsamp.width()), height.div_ceil(subsamp.height()));
    let sizes = [((width, height), image.y_size()), (chroma, image.uv_size()), (chroma, image.uv_size())];
    let count = if subsamp == turbojpeg::Subsamp::Gray { 1 } else { 3 };
    let mut rest = &image.pixels[..];
    // libjpeg-turbo pads luma to whole pixels of chroma.
    let planes = sizes.into_iter().take(count).map(|((width, height), (pitch, rows))| {
        let (plane, behind) = rest.split_at(pitch * rows);
        rest = behind;
        let pixels = plane.chunks(pitch).take(height).flat_map(|row| &row[..width]).copied().collect();
        Plane { width, height, pixels }
    });
    Ok(planes.collect())
}

/// A JPEG with this in its first bytes makes nvJPEG hang until [`LET_GO`] is set.
pub(crate) const HANGS: &[u8] = b"simulated hang";
/// See [`HANGS`].
pub(crate) static LET_GO: AtomicBool = AtomicBool::new(false);

type Decode = unsafe extern "C" fn(*const u8, usize, *const *mut u8, *const usize) -> c_int;

/// `decoder_t` of simulated.c.
unsafe extern "C" fn decode(
    jpeg: *const u8,
    length: usize,
    planes: *const *mut u8,
    pitches: *const usize,
) -> c_int {
    // SAFETY: the library passes the bytes that it was given.
    let jpeg = unsafe { std::slice::from_raw_parts(jpeg, length) };
    let mut head = jpeg[..length.min(100)].windows(HANGS.len());
    while head.any(|bytes| bytes == HANGS) && !LET_GO.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(5));
        head = jpeg[..length.min(100)].windows(HANGS.len());
    }
    let Ok(decoded) = planes_of(jpeg) else { return BAD_JPEG };
    for (index, plane) in decoded.iter().enumerate() {
        // SAFETY: there are four of each, and as many planes of the image are set as it has components.
        let (to, pitch) = unsafe { (*planes.add(index), *pitches.add(index)) };
        for (row, pixels) in plane.pixels.chunks(plane.width).enumerate() {
            // SAFETY: whoever called nvJPEG gave planes with room for every row at this pitch, which is checked against
            // the width.
            unsafe { to.add(row * pitch).copy_from_nonoverlapping(pixels.as_ptr(), pixels.len()) };
        }
    }
    0
}
