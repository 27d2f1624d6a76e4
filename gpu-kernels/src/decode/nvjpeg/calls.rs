//! The functions of libnvjpeg, with the types of nvjpeg.h (nvJPEG 13).
#![allow(unsafe_code, reason = "nvJPEG is called through C functions; the block says why it is sound")]

use std::ffi::{c_int, c_uint, c_void};
use std::path::PathBuf;

use crate::cuda::LibraryError;
use crate::cuda::library::{Library, preload_library};

const NAME: &str = "libnvjpeg.so.13";

/// nvjpegOutputFormat_t: planes of luma and chroma as they are in the file.
pub(super) const OUTPUT_YUV: c_uint = 1;

pub(super) type Handle = *mut c_void;
pub(super) type State = *mut c_void;
pub(super) type JpegStream = *mut c_void;
pub(super) type CudaStream = *mut c_void;
pub(super) type Status = c_int;

/// nvjpegImage_t.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    pub(super) channels: [*mut u8; 4],
    pub(super) pitches: [usize; 4],
}

type Create = unsafe extern "C" fn(c_uint, *const c_void, *const c_void, c_uint, *mut Handle) -> Status;
type MakeOf = unsafe extern "C" fn(Handle, *mut *mut c_void) -> Status;
type Destroy = unsafe extern "C" fn(*mut c_void) -> Status;
type TwoNumbers = unsafe extern "C" fn(*mut c_void, *mut c_uint, *mut c_uint) -> Status;
type Parse = unsafe extern "C" fn(Handle, *const u8, usize, JpegStream) -> Status;
type Initialize = unsafe extern "C" fn(Handle, State, c_int, c_int, c_uint) -> Status;
type DecodeBatched =
    unsafe extern "C" fn(Handle, State, *const *const u8, *const usize, *mut Image, CudaStream) -> Status;

pub(super) struct Calls {
    pub(super) create: Create,
    pub(super) destroy: Destroy,
    pub(super) hardware_info: TwoNumbers,
    pub(super) state_create: MakeOf,
    pub(super) state_destroy: Destroy,
    pub(super) stream_create: MakeOf,
    pub(super) stream_destroy: Destroy,
    pub(super) parse_header: Parse,
    pub(super) dimensions: TwoNumbers,
    pub(super) components: unsafe extern "C" fn(JpegStream, *mut c_uint) -> Status,
    pub(super) subsampling: unsafe extern "C" fn(JpegStream, *mut c_int) -> Status,
    pub(super) supported: unsafe extern "C" fn(Handle, JpegStream, *mut c_int) -> Status,
    pub(super) initialize: Initialize,
    pub(super) decode: DecodeBatched,
    _library: Library,
}

impl Calls {
    pub(super) fn load(folders: &[PathBuf]) -> Result<Self, LibraryError> {
        let library = Library::open(NAME, folders)?;
        // It has a CUDA runtime within, whose threads must not meet that it is gone.
        preload_library(library.path())?;
        // SAFETY: the types are those of nvjpeg.h for a library of this name, and the library lives as long as they do.
        unsafe {
            Ok(Self {
                create: library.function(super::error::CREATE)?,
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
