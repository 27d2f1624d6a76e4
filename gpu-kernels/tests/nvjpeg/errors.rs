//! Libraries that are missing or unusable, GPUs without engines, and what each status means.

use gpu_kernels::cuda::LibraryError;
use gpu_kernels::decode::nvjpeg::{NvJpeg, NvJpegBackend, NvJpegError};

use crate::simulated::{Simulated, compile};

fn with_library(content: &[u8]) -> NvJpegError {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libnvjpeg.so.13"), content).unwrap();
    NvJpeg::open(&[folder.path().to_owned()], NvJpegBackend::Cuda, 1).unwrap_err()
}

#[test]
fn a_missing_or_unusable_library_is_an_error() {
    let empty = tempfile::tempdir().unwrap();
    // On a machine with nvJPEG there is another error or none.
    if let Err(NvJpegError::Library(error)) = NvJpeg::open(&[empty.path().to_owned()], NvJpegBackend::Cuda, 1)
    {
        assert!(matches!(error, LibraryError::Missing { .. }), "{error}");
        assert!(error.to_string().contains("libnvjpeg.so.13"), "{error}");
    }
    for content in [&b""[..], b"not a library", b"\x7fELF\x02\x01\x01 cut off"] {
        let error = with_library(content);
        assert!(matches!(error, NvJpegError::Library(LibraryError::Unusable { .. })), "{error}");
        assert!(!error.is_of_the_image() && !error.is_absent());
    }
}

#[test]
fn every_function_is_missed_by_name() {
    let whole = include_str!("simulated.c");
    for function in [
        "nvjpegCreateEx",
        "nvjpegDestroy",
        "nvjpegGetHardwareDecoderInfo",
        "nvjpegJpegStateCreate",
        "nvjpegJpegStreamDestroy",
        "nvjpegJpegStreamParseHeader",
        "nvjpegJpegStreamGetFrameDimensions",
        "nvjpegJpegStreamGetComponentsNum",
        "nvjpegJpegStreamGetChromaSubsampling",
        "nvjpegDecodeBatchedSupported",
        "nvjpegDecodeBatchedInitialize",
        "nvjpegDecodeBatched",
    ] {
        let source = whole
            .replace(&format!("{function}("), &format!("renamed_{function}("))
            .replace(&format!("{function},"), &format!("renamed_{function},"))
            .replace(&format!("{function})"), &format!("renamed_{function})"))
            .replace(&format!("{function} ("), &format!("renamed_{function} ("));
        let error = with_library(&compile(&source)[..]);
        let NvJpegError::Library(LibraryError::NoFunction { function: missed, .. }) = error else {
            panic!("{function}: {error}");
        };
        assert_eq!(missed, function);
    }
}

#[test]
fn every_status_has_its_words() {
    let simulated = Simulated::new();
    for (code, words, of_the_image) in [
        (1, "not initialised", false),
        (2, "invalid parameter", false),
        (3, "bad JPEG", true),
        (4, "JPEG not supported", true),
        (5, "out of memory", false),
        (6, "execution failed", false),
        (7, "architecture", false),
        (8, "internal error", false),
        (9, "implementation not supported", false),
        (10, "incomplete bitstream", true),
        (11, "unknown", false),
    ] {
        simulated.fail("nvjpegCreateEx", 1, code);
        let error = NvJpeg::open(&simulated.folders(), NvJpegBackend::Hardware, 1).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(words) && text.contains(&format!("nvjpegCreateEx: error {code} ")), "{text}");
        assert_eq!(error.is_of_the_image(), of_the_image, "{text}");
        assert_eq!(error.is_absent(), matches!(code, 7 | 9), "{text}");
    }
    simulated.check();
}

#[test]
fn what_was_made_before_a_failure_is_destroyed() {
    let simulated = Simulated::new();
    for function in ["nvjpegJpegStateCreate", "nvjpegJpegStreamCreate"] {
        simulated.fail(function, 1, 9);
        let error = NvJpeg::open(&simulated.folders(), NvJpegBackend::Cuda, 1).unwrap_err();
        assert!(matches!(error, NvJpegError::Refused { call, code: 9 } if call == function), "{error}");
        assert!(!error.is_absent(), "only the handle tells of the hardware");
        simulated.check();
    }
}

#[test]
fn a_gpu_without_jpeg_engines_is_told_from_a_broken_one() {
    let simulated = Simulated::new();
    let opened = NvJpeg::open(&simulated.folders(), NvJpegBackend::Hardware, 1).unwrap();
    assert_eq!(opened.engines(), Some((1, 4)));
    drop(opened);
    simulated.set_engines(0, 0);
    assert!(NvJpeg::open(&simulated.folders(), NvJpegBackend::Hardware, 1).unwrap_err().is_absent());
    let opened = NvJpeg::open(&simulated.folders(), NvJpegBackend::Cuda, 1).unwrap();
    assert_eq!(opened.engines(), None);
    drop(opened);
    simulated.check();
}
