//! Binds the input and output of a session to memory at fixed addresses, through ONNX Runtime's C API.
//!
//! The `ort` crate's binding copies an input that it does not own when it is bound, and accepts no output that it does not
//! own. Here neither is copied, and each run reads and writes the memory in place. See OrtApi in onnxruntime_c_api.h.
#![allow(unsafe_code, reason = "ONNX Runtime is called through C functions; each block says why it is sound")]

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use ort::memory::MemoryInfo;
use ort::session::{NoSelectedOutputs, RunOptions, Session};
use ort::sys;
use ort::value::TensorElementType;
use ort::{AsPointer, Error};

/// A tensor at a fixed address.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) address: u64,
    pub(super) dims: Vec<i64>,
    pub(super) element: TensorElementType,
}

/// The bound input and output of one session.
pub(super) struct FixedBinding {
    binding: *mut sys::OrtIoBinding,
    values: [*mut sys::OrtValue; 2],
}

// SAFETY: ONNX Runtime's objects are not tied to a thread.
unsafe impl Send for FixedBinding {}

fn result(status: sys::OrtStatusPtr) -> Result<(), Error> {
    // SAFETY: each caller passes the status that a function has just given it, once.
    unsafe { Error::result_from_status(status) }
}

impl FixedBinding {
    /// Binds a session's one input and one output.
    ///
    /// # Safety
    /// The tensors have room at their addresses, in memory of the kind of `memory`, as long as this is run.
    pub(super) unsafe fn new(
        session: &Session,
        memory: &MemoryInfo<'_>,
        input: &Place,
        output: &Place,
    ) -> Result<Self, Error> {
        let api = ort::api();
        let mut bound = Self { binding: null_mut(), values: [null_mut(); 2] };
        // SAFETY: the session is alive, and the function writes one pointer.
        result(unsafe { (api.CreateIoBinding)(session.ptr().cast_mut(), &raw mut bound.binding) })?;
        for (place, value) in [input, output].into_iter().zip(&mut bound.values) {
            let bytes = place.bytes();
            let at = std::ptr::with_exposed_provenance_mut::<c_void>(place.address as usize);
            // SAFETY: the caller vouches for the memory; the shape has as many dimensions as said, and the function writes one
            // pointer, to a value that owns nothing.
            let made = unsafe {
                (api.CreateTensorWithDataAsOrtValue)(
                    memory.ptr(),
                    at,
                    bytes,
                    place.dims.as_ptr(),
                    place.dims.len(),
                    place.element.into(),
                    value,
                )
            };
            result(made)?;
        }
        let name =
            |place: &Place| CString::new(place.name.as_str()).map_err(|_| Error::new("a name with a zero"));
        let (input, output) = (name(input)?, name(output)?);
        // SAFETY: binding and values are alive, and the names end in zero; the binding keeps its own hold on the values.
        unsafe {
            result((api.BindInput)(bound.binding, input.as_ptr(), bound.values[0]))?;
            result((api.BindOutput)(bound.binding, output.as_ptr(), bound.values[1]))?;
        }
        Ok(bound)
    }

    /// Runs the session on the current content of the input.
    pub(super) fn run(
        &self,
        session: &mut Session,
        options: &RunOptions<NoSelectedOutputs>,
    ) -> Result<(), Error> {
        // SAFETY: all three are alive, and the session is this thread's alone.
        result(unsafe { (ort::api().RunWithBinding)(session.ptr().cast_mut(), options.ptr(), self.binding) })
    }
}

impl Place {
    fn bytes(&self) -> usize {
        let values: i64 = self.dims.iter().product();
        let size = if self.element == TensorElementType::Float16 { 2 } else { 4 };
        usize::try_from(values).unwrap_or(0) * size
    }
}

impl Drop for FixedBinding {
    fn drop(&mut self) {
        let api = ort::api();
        // SAFETY: each was made once, and is released once; what was not made is null, which these functions take.
        unsafe {
            (api.ReleaseIoBinding)(self.binding);
            for value in self.values {
                (api.ReleaseValue)(value);
            }
        }
    }
}
