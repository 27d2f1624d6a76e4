//! What is said of a machine's driver: doctored libraries stand in for it, built here with `cc`.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests fail by panics")]

mod nvml;

use std::path::{Path, PathBuf};
use std::process::Command;

use gpu_kernels::cuda::{Driver, GpuError, LibraryError, Version, find_library, library_folders};

/// A folder with a library that this source makes.
fn made(library: &str, source: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("source.c");
    std::fs::write(&file, source).unwrap();
    build(&file, &dir.path().join(library), &[]);
    dir
}

/// A driver as this source makes it.
fn driver(source: &str) -> (tempfile::TempDir, Result<Driver, GpuError>) {
    let dir = made("libcuda.so.1", source);
    let probed = Driver::probe(&[dir.path().to_owned()]);
    (dir, probed)
}

/// Compiles a shared library.
fn build(source: &Path, library: &Path, extra: &[&str]) {
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = Command::new(cc);
    let built =
        command.args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).args(extra).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// A driver with two GPUs, with some of its answers changed.
fn source(version: i32, init: i32, count: i32, attribute: &str) -> String {
    format!(
        r#"
        #include <stddef.h>
        #include <string.h>
        static int ready;
        int cuInit(unsigned flags) {{ ready = 1; return flags ? 1 : {init}; }}
        int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}
        int cuDeviceGetCount(int *count) {{ *count = {count}; return ready ? 0 : 3; }}
        int cuDeviceGet(int *device, int number) {{ *device = number + 7; return number < {count} ? 0 : 101; }}
        int cuDeviceGetName(char *name, int length, int device) {{
            memset(name, 'x', length);
            if (device == 7) strncpy(name, "NVIDIA Test 7", length);
            return 0;
        }}
        int cuDeviceTotalMem_v2(size_t *bytes, int device) {{ *bytes = (size_t)80 << 30; return device < 7; }}
        {attribute}
        "#
    )
}

const CAPABLE: &str = "int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 9 : 0; return device < 7; }";

#[test]
fn a_driver_names_its_gpus() {
    let (dir, probed) = driver(&source(13_010, 0, 2, CAPABLE));
    let driver = probed.unwrap();
    assert_eq!(driver.library, dir.path().join("libcuda.so.1"));
    assert_eq!(driver.version, Version { major: 13, minor: 1 });
    assert_eq!(driver.gpus.len(), 2);
    assert_eq!(driver.gpus[0].to_string(), "0: NVIDIA Test 7, 80 GiB, compute capability 9.0");
    // A name without an end is cut off where the buffer ends.
    assert_eq!((driver.gpus[1].number, driver.gpus[1].name.len()), (1, 255));
}

#[test]
fn a_missing_driver_is_missing() {
    let empty = tempfile::tempdir().unwrap();
    // Where this machine has a driver, there is nothing to see here.
    if let Err(error) = Driver::probe(&[empty.path().to_owned()]) {
        assert!(matches!(error, GpuError::Library(LibraryError::Missing { .. })), "{error}");
        assert!(error.to_string().contains("libcuda.so.1") && error.remedy().contains("580"), "{error}");
    }
}

#[test]
fn a_file_that_is_no_library_is_named() {
    for content in [&b""[..], b"not a library", b"\x7fELF\x02\x01\x01 cut off"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libcuda.so.1");
        std::fs::write(&path, content).unwrap();
        let error = Driver::probe(&[dir.path().to_owned()]).unwrap_err();
        assert!(matches!(error, GpuError::Library(LibraryError::Unusable { .. })), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn a_library_without_what_it_depends_on_is_not_called_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (base, base_source) = (dir.path().join("libbase.so"), dir.path().join("base.c"));
    std::fs::write(&base_source, "int base(void) { return 0; }").unwrap();
    build(&base_source, &base, &["-Wl,-soname,libbase.so"]);
    let own = dir.path().join("driver.c");
    std::fs::write(&own, "int base(void); int cuInit(unsigned f) { (void)f; return base(); }").unwrap();
    let base_path = base.display().to_string();
    build(&own, &dir.path().join("libcuda.so.1"), &["-Wl,--no-as-needed", &base_path]);
    std::fs::remove_file(&base).unwrap();
    let error = Driver::probe(&[dir.path().to_owned()]).unwrap_err();
    assert!(matches!(error, GpuError::Library(LibraryError::Unusable { .. })), "{error}");
    assert!(error.to_string().contains("libbase.so"), "{error}");
}

#[test]
fn a_library_of_another_version_lacks_a_function() {
    let (_dir, probed) = driver(&source(13_000, 0, 1, ""));
    let error = probed.unwrap_err();
    assert!(
        matches!(error, GpuError::Library(LibraryError::NoFunction { function: "cuDeviceGetAttribute", .. })),
        "{error}"
    );
}

#[test]
fn an_old_driver_is_called_old_even_if_it_does_not_start() {
    let (_dir, probed) = driver(&source(12_080, 999, 1, CAPABLE));
    let error = probed.unwrap_err();
    assert!(matches!(error, GpuError::OldDriver { found: Version { major: 12, minor: 8 } }), "{error}");
    assert!(error.to_string().contains("12.8") && error.to_string().contains("13.0"), "{error}");
}

#[test]
fn a_driver_without_gpus_or_that_refuses_says_so() {
    let probe = |init, count| driver(&source(13_000, init, count, CAPABLE)).1.unwrap_err();
    assert!(matches!(probe(100, 0), GpuError::NoGpu));
    assert!(matches!(probe(0, 0), GpuError::NoGpu));
    let mismatch = probe(803, 1);
    assert!(matches!(mismatch, GpuError::Refused { call: "cuInit", code: 803 }));
    assert!(mismatch.to_string().contains("different versions"), "{mismatch}");
}

#[test]
fn libraries_are_found_where_wheels_put_them() {
    let site = tempfile::tempdir().unwrap();
    for path in
        ["nvidia/cu13/lib/libnvjpeg.so.13", "onnxruntime/capi/libonnxruntime_providers_cuda.so", "own.so"]
    {
        let path = site.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"").unwrap();
    }
    let folders = library_folders(&[site.path().to_owned(), PathBuf::from("/nowhere")]);
    assert!(!folders.contains(&PathBuf::from("/nowhere")));
    let found = |name| find_library(name, &folders);
    assert_eq!(found("libnvjpeg.so.13"), Some(site.path().join("nvidia/cu13/lib/libnvjpeg.so.13")));
    assert!(found("libonnxruntime_providers_cuda.so").is_some() && found("own.so").is_some());
    assert_eq!(found("libnothing.so.1"), None);
}
