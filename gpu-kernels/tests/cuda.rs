//! Errors and properties of drivers, with libraries built here by `cc` in place of the driver.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests fail by panics")]

use std::path::{Path, PathBuf};
use std::process::Command;

use gpu_kernels::cuda::{
    Driver, GpuError, GpuReading, LibraryError, Nvml, Version, find_library, library_folders,
};

/// A folder with a library compiled from this source.
fn made(library: &str, source: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("source.c");
    std::fs::write(&file, source).unwrap();
    build(&file, &dir.path().join(library), &[]);
    dir
}

/// A driver compiled from this source.
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

/// A driver with two GPUs, with some of its results changed.
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
    // A name without a terminator is truncated at the end of the buffer.
    assert_eq!((driver.gpus[1].number, driver.gpus[1].name.len()), (1, 255));
}

#[test]
fn a_missing_driver_is_missing() {
    let empty = tempfile::tempdir().unwrap();
    // On a machine with a driver there is nothing to check.
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

/// NVML with one GPU. `init` and `temperature` are status codes.
fn nvml_source(init: i32, temperature: i32) -> String {
    format!(
        r"
        typedef struct {{ unsigned gpu, memory; }} utilization;
        typedef struct {{ unsigned long long total, free, used; }} memory;
        static int users, gpu;
        int nvmlInit_v2(void) {{ users++; return {init}; }}
        int nvmlShutdown(void) {{ return --users; }}
        int nvmlDeviceGetCount_v2(unsigned *count) {{ *count = 1; return users < 1; }}
        int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {{ *device = &gpu; return index ? 2 : 0; }}
        int nvmlDeviceGetUtilizationRates(void *d, utilization *to) {{ to->gpu = 42; to->memory = 7; return d != &gpu; }}
        int nvmlDeviceGetMemoryInfo(void *d, memory *to) {{ to->total = 80; to->free = 50; to->used = 30; return d != &gpu; }}
        int nvmlDeviceGetTemperature(void *d, unsigned sensor, unsigned *to) {{ *to = 61 + sensor; return {temperature}; }}
        int nvmlDeviceGetPowerUsage(void *d, unsigned *to) {{ *to = 123456; return d != &gpu; }}
        int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *to) {{ *to = 0x40; return d != &gpu; }}
        int nvmlDeviceGetTotalEccErrors(void *d, unsigned type, unsigned counter, unsigned long long *to) {{ return 3; }}
        "
    )
}

fn open_nvml(source: &str) -> (tempfile::TempDir, Result<Nvml, GpuError>) {
    let dir = made("libnvidia-ml.so.1", source);
    let opened = Nvml::open(&[dir.path().to_owned()]);
    (dir, opened)
}

#[test]
fn a_gpu_is_read_and_what_it_does_not_report_is_unknown() {
    let (_dir, opened) = open_nvml(&nvml_source(0, 0));
    let nvml = opened.unwrap();
    assert_eq!(nvml.gpus(), 1);
    let expected = GpuReading {
        utilization: Some(42),
        memory_used: Some(30),
        memory_total: Some(80),
        temperature: Some(61),
        power: Some(123_456),
        throttled: Some(true),
        ecc_errors: None,
    };
    assert_eq!(nvml.read(0).unwrap(), expected);
    assert!(matches!(nvml.read(1), Err(GpuError::Refused { code: 2, .. })));
}

#[test]
fn a_lost_gpu_and_an_nvml_that_does_not_start_are_errors() {
    let (_dir, opened) = open_nvml(&nvml_source(0, 15));
    let lost = opened.unwrap().read(0).unwrap_err();
    assert!(matches!(lost, GpuError::Refused { call: "nvmlDeviceGetTemperature", code: 15 }), "{lost}");
    let (_dir, opened) = open_nvml(&nvml_source(9, 0));
    assert!(matches!(opened, Err(GpuError::Refused { call: "nvmlInit", code: 9 })));
}

#[test]
fn a_damaged_nvml_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("libnvidia-ml.so.1"), b"no library").unwrap();
    let damaged = Nvml::open(&[dir.path().to_owned()]).unwrap_err();
    assert!(matches!(damaged, GpuError::Library(LibraryError::Unusable { .. })), "{damaged}");
    let (_dir, opened) = open_nvml("int nvmlInit_v2(void) { return 0; }");
    assert!(matches!(opened, Err(GpuError::Library(LibraryError::NoFunction { .. }))));
}
