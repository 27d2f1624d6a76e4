//! NVML, from a library made for the test.

use gpu_kernels::cuda::{GpuError, GpuReading, LibraryError, Nvml};

use crate::made;

/// NVML with one GPU. `init` and `temperature` are status codes.
fn source(init: i32, temperature: i32) -> String {
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

fn open(source: &str) -> (tempfile::TempDir, Result<Nvml, GpuError>) {
    let dir = made("libnvidia-ml.so.1", source);
    let opened = Nvml::open(&[dir.path().to_owned()]);
    (dir, opened)
}

#[test]
fn a_gpu_is_read_and_what_it_does_not_report_is_unknown() {
    let (_dir, opened) = open(&source(0, 0));
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
    let (_dir, opened) = open(&source(0, 15));
    let lost = opened.unwrap().read(0).unwrap_err();
    assert!(matches!(lost, GpuError::Refused { call: "nvmlDeviceGetTemperature", code: 15 }), "{lost}");
    let (_dir, opened) = open(&source(9, 0));
    assert!(matches!(opened, Err(GpuError::Refused { call: "nvmlInit", code: 9 })));
}

#[test]
fn a_damaged_nvml_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("libnvidia-ml.so.1"), b"no library").unwrap();
    let damaged = Nvml::open(&[dir.path().to_owned()]).unwrap_err();
    assert!(matches!(damaged, GpuError::Library(LibraryError::Unusable { .. })), "{damaged}");
    let (_dir, opened) = open("int nvmlInit_v2(void) { return 0; }");
    assert!(matches!(opened, Err(GpuError::Library(LibraryError::NoFunction { .. }))));
}
