//! nvJPEG, opened on a GPU: support for a JPEG, and decoding in batches; with the functions of libnvjpeg and the types of
//! nvjpeg.h (nvJPEG 13).
#![allow(unsafe_code, reason = "nvJPEG is called through C functions; each block says why it is sound")]

use std::ffi::{c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;

use super::{CREATE, JpegDestination, JpegPlanes, NvJpegBackend, NvJpegError, check};
use crate::cuda::LibraryError;
use crate::cuda::library::{Library, preload_library};

const LIBRARY: &str = "libnvjpeg.so.13";

/// nvjpegOutputFormat_t: planes of luma and chroma as in the file.
const OUTPUT_YUV: c_uint = 1;

type Handle = *mut c_void;
type State = *mut c_void;
type JpegStream = *mut c_void;
type CudaStream = *mut c_void;
type Status = c_int;

/// nvjpegImage_t.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Image {
    channels: [*mut u8; 4],
    pitches: [usize; 4],
}

type Create = unsafe extern "C" fn(c_uint, *const c_void, *const c_void, c_uint, *mut Handle) -> Status;
type MakeOf = unsafe extern "C" fn(Handle, *mut *mut c_void) -> Status;
type Destroy = unsafe extern "C" fn(*mut c_void) -> Status;
type TwoNumbers = unsafe extern "C" fn(*mut c_void, *mut c_uint, *mut c_uint) -> Status;
type Parse = unsafe extern "C" fn(Handle, *const u8, usize, JpegStream) -> Status;
type Initialize = unsafe extern "C" fn(Handle, State, c_int, c_int, c_uint) -> Status;
type DecodeBatched =
    unsafe extern "C" fn(Handle, State, *const *const u8, *const usize, *mut Image, CudaStream) -> Status;

/// The functions of the library, which stays loaded while this lives.
struct Calls {
    create: Create,
    destroy: Destroy,
    hardware_info: TwoNumbers,
    state_create: MakeOf,
    state_destroy: Destroy,
    stream_create: MakeOf,
    stream_destroy: Destroy,
    parse_header: Parse,
    dimensions: TwoNumbers,
    components: unsafe extern "C" fn(JpegStream, *mut c_uint) -> Status,
    subsampling: unsafe extern "C" fn(JpegStream, *mut c_int) -> Status,
    supported: unsafe extern "C" fn(Handle, JpegStream, *mut c_int) -> Status,
    initialize: Initialize,
    decode: DecodeBatched,
    _library: Library,
}

impl Calls {
    fn load(folders: &[PathBuf]) -> Result<Self, LibraryError> {
        let library = Library::open(LIBRARY, folders)?;
        // It contains a CUDA runtime, whose threads must not outlive the library.
        preload_library(library.path())?;
        // SAFETY: the types are those of nvjpeg.h for a library of this name, and the library lives as long as they do.
        unsafe {
            Ok(Self {
                create: library.function(CREATE)?,
                destroy: library.function("nvjpegDestroy")?,
                hardware_info: library.function("nvjpegGetHardwareDecoderInfo")?,
                state_create: library.function("nvjpegJpegStateCreate")?,
                state_destroy: library.function("nvjpegJpegStateDestroy")?,
                stream_create: library.function("nvjpegJpegStreamCreate")?,
                stream_destroy: library.function("nvjpegJpegStreamDestroy")?,
                parse_header: library.function("nvjpegJpegStreamParseHeader")?,
                dimensions: library.function("nvjpegJpegStreamGetFrameDimensions")?,
                components: library.function("nvjpegJpegStreamGetComponentsNum")?,
                subsampling: library.function("nvjpegJpegStreamGetChromaSubsampling")?,
                supported: library.function("nvjpegDecodeBatchedSupported")?,
                initialize: library.function("nvjpegDecodeBatchedInitialize")?,
                decode: library.function("nvjpegDecodeBatched")?,
                _library: library,
            })
        }
    }
}

/// nvJPEG, opened on the GPU of a CUDA context. Owned by one lane, which calls it with that context current.
///
/// Must be dropped after the stream has finished its last batch.
pub struct NvJpeg {
    calls: Calls,
    handle: Handle,
    state: State,
    header: JpegStream,
    backend: NvJpegBackend,
    max_batch: usize,
    /// Batch size for which the state is initialised; 0 if it is not.
    ready_for: usize,
    data: Vec<*const u8>,
    lengths: Vec<usize>,
    images: Vec<Image>,
}

// SAFETY: nvJPEG's objects belong to a CUDA context and not to a thread; a call needs only that the context is current.
// The pointers in the vectors are only used within one call of `decode`.
unsafe impl Send for NvJpeg {}

impl std::fmt::Debug for NvJpeg {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "NvJpeg({:?}, up to {} images)", self.backend, self.max_batch)
    }
}

impl NvJpeg {
    /// Loads the library from one of `folders` or by the system's loader, and opens it for batches of up to `max_batch`
    /// images. It decodes on the CUDA context that is current on the calling thread.
    ///
    /// # Errors
    /// [`NvJpegError`]; [`NvJpegError::is_absent`] if this GPU has no such engine.
    pub fn open(folders: &[PathBuf], backend: NvJpegBackend, max_batch: usize) -> Result<Self, NvJpegError> {
        let calls = Calls::load(folders)?;
        let max_batch = max_batch.min(c_int::MAX as usize);
        let mut opened = Self {
            calls,
            handle: null_mut(),
            state: null_mut(),
            header: null_mut(),
            backend,
            max_batch,
            ready_for: 0,
            data: Vec::new(),
            lengths: Vec::new(),
            images: Vec::new(),
        };
        let none = std::ptr::null();
        // SAFETY: writes one handle; without custom allocators it uses those of CUDA, and there are no flags.
        let made = unsafe { (opened.calls.create)(backend.code(), none, none, 0, &raw mut opened.handle) };
        check(CREATE, made)?;
        // SAFETY: writes one state of the handle just made.
        let made = unsafe { (opened.calls.state_create)(opened.handle, &raw mut opened.state) };
        check("nvjpegJpegStateCreate", made)?;
        // SAFETY: writes one parsed header of the handle just made.
        let made = unsafe { (opened.calls.stream_create)(opened.handle, &raw mut opened.header) };
        check("nvjpegJpegStreamCreate", made)?;
        Ok(opened)
    }

    /// Number of JPEG engines of this GPU, and cores per engine; `None` if it has none.
    pub fn engines(&self) -> Option<(u32, u32)> {
        let (mut engines, mut cores): (c_uint, c_uint) = (0, 0);
        // SAFETY: writes two numbers.
        let code = unsafe { (self.calls.hardware_info)(self.handle, &raw mut engines, &raw mut cores) };
        (code == 0 && engines > 0).then_some((engines, cores))
    }

    /// Whether nvJPEG supports a JPEG that is [`eligible`](super::eligible()), and reports the same planes.
    pub fn takes(&mut self, jpeg: &[u8], planes: &JpegPlanes) -> bool {
        let header = self.header;
        let (mut width, mut height, mut components): (c_uint, c_uint, c_uint) = (0, 0, 0);
        let (mut subsampling, mut unsupported): (c_int, c_int) = (-1, -1);
        // SAFETY: the header is one of this handle, the bytes live through this call, and each function writes the one or two
        // numbers that it is given; the header is only queried after it has been parsed.
        let asked = unsafe {
            (self.calls.parse_header)(self.handle, jpeg.as_ptr(), jpeg.len(), header) == 0
                && (self.calls.dimensions)(header, &raw mut width, &raw mut height) == 0
                && (self.calls.components)(header, &raw mut components) == 0
                && (self.calls.subsampling)(header, &raw mut subsampling) == 0
                && (self.calls.supported)(self.handle, header, &raw mut unsupported) == 0
        };
        asked
            && unsupported == 0
            && (width, height) == (planes.width, planes.height)
            && components == c_uint::from(planes.components)
            && Some(subsampling) == subsampling_code(planes)
    }

    /// Decodes a batch into planes of luma and chroma at full size, as work on the CUDA stream `stream`.
    ///
    /// An error may occur before or after work was submitted; either way the planes are invalid, and the next batch starts
    /// anew. Later errors are reported by the stream.
    ///
    /// # Errors
    /// [`NvJpegError`]; [`NvJpegError::is_of_the_image`] if one of the JPEGs is at fault.
    ///
    /// # Safety
    /// - The CUDA context of [`open`](Self::open) is current on this thread, and `stream` is one of its streams, which has
    ///   finished the last batch.
    /// - Each destination is device memory with room for the [`JpegPlanes`] of its JPEG, and nothing else reads or writes
    ///   it until the stream has finished.
    /// - The JPEGs' bytes are not modified until the stream has finished, also after an error.
    pub unsafe fn decode(
        &mut self,
        jpegs: &[&[u8]],
        destinations: &[JpegDestination],
        stream: *mut c_void,
    ) -> Result<(), NvJpegError> {
        let count = jpegs.len();
        if count != destinations.len() {
            return Err(NvJpegError::Unpaired { images: count, destinations: destinations.len() });
        }
        if count > self.max_batch {
            return Err(NvJpegError::BatchTooLarge { images: count, max: self.max_batch });
        }
        if count == 0 {
            return Ok(());
        }
        if self.ready_for != count {
            self.ready_for = 0;
            // SAFETY: the state is one of this handle; the size fits, since `max_batch` does.
            let code =
                unsafe { (self.calls.initialize)(self.handle, self.state, count as c_int, 1, OUTPUT_YUV) };
            check("nvjpegDecodeBatchedInitialize", code)?;
        }
        self.ready_for = 0;
        self.data.clear();
        self.data.extend(jpegs.iter().map(|jpeg| jpeg.as_ptr()));
        self.lengths.clear();
        self.lengths.extend(jpegs.iter().map(|jpeg| jpeg.len()));
        self.images.clear();
        self.images.extend(destinations.iter().map(raw));
        let (data, lengths) = (self.data.as_ptr(), self.lengths.as_ptr());
        let images = self.images.as_mut_ptr();
        // SAFETY: the three arrays have as many elements as the state is initialised for and live until the next call; the
        // caller guarantees the bytes, the planes, the stream and the context.
        let code = unsafe { (self.calls.decode)(self.handle, self.state, data, lengths, images, stream) };
        check("nvjpegDecodeBatched", code)?;
        self.ready_for = count;
        Ok(())
    }
}

impl Drop for NvJpeg {
    fn drop(&mut self) {
        // SAFETY: what was created is destroyed once, the handle last since the others belong to it; what was not is null.
        unsafe {
            if !self.header.is_null() {
                (self.calls.stream_destroy)(self.header);
            }
            if !self.state.is_null() {
                (self.calls.state_destroy)(self.state);
            }
            if !self.handle.is_null() {
                (self.calls.destroy)(self.handle);
            }
        }
    }
}

/// nvjpegChromaSubsampling_t.
fn subsampling_code(planes: &JpegPlanes) -> Option<c_int> {
    match (planes.components, planes.shift_x, planes.shift_y) {
        (1, ..) => Some(6),
        (3, 0, 0) => Some(0),
        (3, 1, 0) => Some(1),
        (3, 1, 1) => Some(2),
        (3, 0, 1) => Some(3),
        _ => None,
    }
}

fn raw(destination: &JpegDestination) -> Image {
    let mut image = Image { channels: [null_mut(); 4], pitches: [0; 4] };
    let channels = image.channels.iter_mut().zip(&mut image.pitches);
    for ((channel, pitch), &(address, bytes)) in channels.zip(&destination.planes) {
        *channel = std::ptr::with_exposed_provenance_mut(address as usize);
        *pitch = bytes as usize;
    }
    image
}
