//! libjpeg-turbo with our own error manager: a decompressor per image, and each warning by its code.
#![allow(unsafe_code, reason = "calls turbo.c; each block says why it is sound")]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint};

use crate::decode::Until;

// Its build script builds the library that turbo.c is linked with.
use turbojpeg_sys as _;

/// JMSG_LENGTH_MAX of jpeglib.h.
const TEXT: usize = 200;

/// Warnings of the library, none of which alone costs a pixel. The bits are those in turbo.c.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Warnings(u32);

impl Warnings {
    /// The scans of a progressive image refine coefficients out of order.
    const PROGRESSION: u32 = 1 << 1;
    const EXTRANEOUS_BEFORE_END: u32 = 1 << 2;
    const EXTRANEOUS: u32 = 1 << 3;
    const END_OF_FILE: u32 = 1 << 5;

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Bytes before the EOI: every block was decoded by then, unless a restart marker was expected.
    pub(super) fn has_bytes_before_end(self) -> bool {
        self.0 & Self::EXTRANEOUS_BEFORE_END != 0
    }

    /// Bytes before another marker, or scans out of order, as webcams write them.
    pub(super) fn is_ambiguous(self) -> bool {
        self.0 & (Self::EXTRANEOUS | Self::PROGRESSION) != 0
    }

    /// The file ends without an EOI; its pixels may be complete.
    pub(super) fn lacks_end(self) -> bool {
        self.0 & Self::END_OF_FILE != 0
    }
}

/// Why decoding failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The library's message.
    Library(String),
    TooManyScans,
    /// The library reads another size from the headers.
    OtherSize,
    /// The time limit was reached.
    OutOfTime,
}

/// Parameters of a decode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Scale in eighths, 1 to 8.
    pub(super) eighths: u32,
    /// Scaled size.
    pub(super) width: u32,
    pub(super) height: u32,
    /// 4 for CMYK, else 3.
    pub(super) channels: usize,
    /// Limit for whole-image buffers in bytes.
    pub(super) max_memory: u64,
    pub(super) max_scans: u32,
    pub(super) until: Until,
}

#[repr(C)]
struct Report {
    warnings: u32,
    text: [c_char; TEXT],
}

impl Report {
    fn new() -> Self {
        Self { warnings: 0, text: [0; TEXT] }
    }

    fn text(&self) -> String {
        let bytes = self.text.map(|byte| byte as u8);
        let text = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
        text.to_string_lossy().into_owned()
    }
}

// SAFETY: the signatures are those of turbo.c.
unsafe extern "C" {
    fn weir_jpeg_decode(
        bytes: *const u8,
        length: usize,
        eighths: c_uint,
        pixels: *mut u8,
        pitch: usize,
        width: u32,
        height: u32,
        max_memory: c_long,
        max_scans: c_int,
        nanoseconds: i64,
        work: i64,
        report: *mut Report,
    ) -> c_int;
    fn weir_jpeg_check(report: *mut Report) -> c_int;
}

/// Decodes `bytes` to the start of `pixels`, row by row without padding: RGB, or CMYK for four components.
pub(super) fn decode(bytes: &[u8], request: &Request, pixels: &mut [u8]) -> Result<Warnings, Failure> {
    let pitch = request.channels * request.width as usize;
    if pixels.len() < pitch * request.height as usize || !(1..=8).contains(&request.eighths) {
        return Err(Failure::OtherSize);
    }
    let mut report = Report::new();
    // SAFETY: both slices are valid for the call; the pixels have room for `height` rows of `pitch` bytes, and turbo.c writes
    // no row unless the library's size is the requested one and its rows fit in the pitch. The report has turbo.c's layout.
    let ended = unsafe {
        weir_jpeg_decode(
            bytes.as_ptr(),
            bytes.len(),
            request.eighths,
            pixels.as_mut_ptr(),
            pitch,
            request.width,
            request.height,
            c_long::try_from(request.max_memory).unwrap_or(c_long::MAX),
            c_int::try_from(request.max_scans.max(1)).unwrap_or(c_int::MAX),
            or_none(request.until.nanoseconds_left()),
            or_none(request.until.nanoseconds_of_work_left()),
            &raw mut report,
        )
    };
    match ended {
        0 => Ok(Warnings(report.warnings)),
        1 => Err(Failure::Library(report.text())),
        2 => Err(Failure::TooManyScans),
        4 => Err(Failure::OutOfTime),
        _ => Err(Failure::OtherSize),
    }
}

/// Nanoseconds as passed to turbo.c: negative for none.
fn or_none(nanoseconds: Option<u64>) -> i64 {
    nanoseconds.map_or(-1, |left| i64::try_from(left).unwrap_or(i64::MAX))
}

/// Whether the library is the one that turbo.c was compiled for.
pub(super) fn check() -> Result<(), String> {
    let mut report = Report::new();
    // SAFETY: the report has turbo.c's layout and is valid for the call.
    match unsafe { weir_jpeg_check(&raw mut report) } {
        0 => Ok(()),
        _ => Err(report.text()),
    }
}
