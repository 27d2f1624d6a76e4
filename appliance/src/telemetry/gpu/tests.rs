//! The metrics of GPUs, from a simulated NVML.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gpu_kernels::cuda::{GpuReading, Nvml};
use inference::engine::DeviceKind;
use tempfile::TempDir;

use super::GpuMonitor;
use crate::telemetry::{CloudReadings, Gauges, Metrics};

/// Two GPUs, of which the second reports nothing. Files beside the library make the first one be lost or not answer. It
/// draws 1.5 W more with each reading.
const SOURCE: &str = r#"
    #include <unistd.h>
    typedef struct { unsigned gpu, memory; } utilization;
    typedef struct { unsigned long long total, free, used; } memory;
    static int gpus[2];
    static unsigned readings;
    static int status(void *gpu) { return gpu == &gpus[0] ? 0 : 3; }
    static int is(const char *file) { return access(file, F_OK) == 0; }
    int nvmlInit_v2(void) { return 0; }
    int nvmlShutdown(void) { return 0; }
    int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
    int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) {
        if (index > 1) return 2;
        *gpu = &gpus[index];
        return 0;
    }
    int nvmlDeviceGetUtilizationRates(void *gpu, utilization *to) { to->gpu = 42; return status(gpu); }
    int nvmlDeviceGetMemoryInfo(void *gpu, memory *to) {
        to->total = 80ULL << 30;
        to->used = 30ULL << 30;
        return status(gpu);
    }
    int nvmlDeviceGetTemperature(void *gpu, unsigned sensor, unsigned *to) {
        *to = 61;
        if (status(gpu)) return status(gpu);
        while (is("DIR/silent")) usleep(10000);
        return is("DIR/lost") ? 15 : 0;
    }
    int nvmlDeviceGetPowerUsage(void *gpu, unsigned *to) {
        if (!status(gpu)) *to = 1500 * ++readings;
        return status(gpu);
    }
    int nvmlDeviceGetCurrentClocksThrottleReasons(void *gpu, unsigned long long *to) { *to = 0x40; return status(gpu); }
    int nvmlDeviceGetTotalEccErrors(void *gpu, unsigned type, unsigned counter, unsigned long long *to) {
        *to = 7;
        return status(gpu);
    }
"#;

/// More than any test takes, on a machine of any load.
const LONG: Duration = Duration::from_secs(600);

/// A folder with this NVML.
fn made() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("nvml.c");
    std::fs::write(&source, SOURCE.replace("DIR", dir.path().to_str().unwrap())).unwrap();
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = Command::new(cc);
    let library = dir.path().join("libnvidia-ml.so.1");
    let built = command.args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    dir
}

/// A monitor that reuses a reading for `max_age`.
fn monitor(device: DeviceKind, folder: &Path, max_age: Duration, read_timeout: Duration) -> Arc<GpuMonitor> {
    GpuMonitor::with_times(device, &[folder.to_owned()], max_age, read_timeout)
}

/// The samples of GPUs in a scrape, in the order of the alphabet.
async fn scrape(metrics: &Metrics, monitor: &Arc<GpuMonitor>) -> Vec<String> {
    let text = render(metrics, monitor.readings().await);
    let mut samples: Vec<_> =
        text.lines().filter(|line| line.starts_with("weir_gpu_")).map(str::to_owned).collect();
    samples.sort();
    samples
}

fn render(metrics: &Metrics, gpus: Vec<Option<GpuReading>>) -> String {
    let cloud = CloudReadings::default();
    let gauges = Gauges {
        queue_depth: 0,
        queue_capacity: 8,
        lanes_alive: 1,
        memory: crate::telemetry::MemoryReadings::default(),
        cache: None,
        outbox: None,
        cloud,
        gpus,
    };
    metrics.render(Some(&gauges)).unwrap()
}

#[tokio::test]
async fn what_a_gpu_reports_has_samples_and_what_it_does_not_has_none() {
    let dir = made();
    let (metrics, monitor) = (Metrics::new(), monitor(DeviceKind::Auto, dir.path(), LONG, LONG));
    let expected = [
        "weir_gpu_ecc_errors_total{gpu=\"0\"} 7",
        "weir_gpu_memory_total_bytes{gpu=\"0\"} 85899345920",
        "weir_gpu_memory_used_bytes{gpu=\"0\"} 32212254720",
        "weir_gpu_power_watts{gpu=\"0\"} 1.5",
        "weir_gpu_temperature_celsius{gpu=\"0\"} 61",
        "weir_gpu_throttled{gpu=\"0\"} 1",
        "weir_gpu_up{gpu=\"0\"} 1",
        "weir_gpu_up{gpu=\"1\"} 1",
        "weir_gpu_utilization_ratio{gpu=\"0\"} 0.42",
    ];
    assert_eq!(scrape(&metrics, &monitor).await, expected);
    let text = render(&metrics, monitor.readings().await);
    for line in [
        "# TYPE weir_gpu_utilization_ratio gauge",
        "# UNIT weir_gpu_utilization_ratio ratio",
        "# UNIT weir_gpu_power_watts watts",
        "# TYPE weir_gpu_ecc_errors counter",
    ] {
        assert!(text.lines().any(|of| of == line), "{line} is missing in:\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_reading_is_reused_until_it_is_too_old() {
    let dir = made();
    let (metrics, monitor) = (Metrics::new(), monitor(DeviceKind::Cuda, dir.path(), LONG, LONG));
    let before = scrape(&metrics, &monitor).await;
    std::fs::write(dir.path().join("lost"), b"").unwrap();
    assert_eq!(scrape(&metrics, &monitor).await, before);
}

#[tokio::test]
async fn a_lost_gpu_has_no_old_values() {
    let dir = made();
    let (metrics, monitor) = (Metrics::new(), monitor(DeviceKind::Cuda, dir.path(), Duration::ZERO, LONG));
    let before = scrape(&metrics, &monitor).await;
    let lost = dir.path().join("lost");
    std::fs::write(&lost, b"").unwrap();
    assert_eq!(scrape(&metrics, &monitor).await, ["weir_gpu_up{gpu=\"0\"} 0", "weir_gpu_up{gpu=\"1\"} 1"]);
    std::fs::remove_file(&lost).unwrap();
    let after = scrape(&metrics, &monitor).await;
    assert_eq!(after.len(), before.len());
    // The reading of the lost GPU ended before its power was read.
    assert!(after.contains(&"weir_gpu_power_watts{gpu=\"0\"} 3.0".to_owned()), "{after:?}");
}

#[tokio::test]
async fn a_driver_that_does_not_answer_holds_a_scrape_up_for_the_timeout_only() {
    let dir = made();
    let metrics = Metrics::new();
    let patient = monitor(DeviceKind::Auto, dir.path(), Duration::ZERO, LONG);
    assert!(scrape(&metrics, &patient).await.len() > 2);
    std::fs::write(dir.path().join("silent"), b"").unwrap();
    // A monitor that has opened the library already, so that only the reading is within its timeout.
    let nvml = Nvml::open(&[dir.path().to_owned()]).unwrap();
    let monitor = Arc::new(GpuMonitor {
        folders: Vec::new(),
        max_age: Duration::ZERO,
        read_timeout: Duration::from_millis(50),
        nvml: OnceLock::from(Some(nvml)),
        last: Arc::default(),
    });
    assert_eq!(scrape(&metrics, &monitor).await, ["weir_gpu_up{gpu=\"0\"} 0", "weir_gpu_up{gpu=\"1\"} 0"]);
    // It was the timeout that ended the scrape: the driver still has the reading.
    assert!(monitor.last.try_lock().is_err());
    drop(dir);
}

#[tokio::test]
async fn without_nvml_or_where_the_cpu_was_asked_for_there_are_no_samples() {
    let (working, damaged, empty) = (made(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(damaged.path().join("libnvidia-ml.so.1"), b"no library").unwrap();
    let metrics = Metrics::new();
    for (device, folder) in [(DeviceKind::Cpu, working.path()), (DeviceKind::Auto, damaged.path())] {
        let monitor = monitor(device, folder, LONG, LONG);
        for _ in 0..2 {
            assert_eq!(scrape(&metrics, &monitor).await, [""; 0]);
        }
        assert!(!render(&metrics, Vec::new()).contains("weir_gpu"));
    }
    // A machine may have one of its own.
    let own = Nvml::open(&[empty.path().to_owned()]).map_or(0, |nvml| nvml.gpus());
    assert_eq!(monitor(DeviceKind::Auto, empty.path(), LONG, LONG).readings().await.len(), own as usize);
}
