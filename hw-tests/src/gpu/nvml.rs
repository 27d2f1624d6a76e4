//! The GPU's readings through NVML: before, during and after the classification of images.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;
use gpu_kernels::cuda::{GpuError, GpuReading, Nvml};

use super::report::Sheet;
use super::setup::Setup;
use crate::bench::Target;

/// Interval between readings.
const EACH: Duration = Duration::from_millis(200);

/// One reading, or the text of the error.
pub(super) fn read(folders: &[PathBuf], gpu: u32) -> Result<GpuReading, String> {
    Nvml::open(folders).and_then(|nvml| nvml.read(gpu)).map_err(|error: GpuError| error.to_string())
}

/// Reads a GPU periodically until it is stopped.
pub(super) struct Watch {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<GpuReading>>>,
}

impl Watch {
    /// Starts; without NVML there are no readings.
    pub(super) fn begin(setup: &Setup) -> Self {
        let (folders, gpu) = (setup.args.folders.clone(), setup.gpu.number);
        let ending = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&ending);
        let thread = std::thread::spawn(move || {
            let mut readings = Vec::new();
            let Ok(nvml) = Nvml::open(&folders) else { return readings };
            while !ends.load(Ordering::Relaxed) {
                readings.extend(nvml.read(gpu));
                std::thread::sleep(EACH);
            }
            readings
        });
        Self { ending, thread: Some(thread) }
    }

    /// Stops and returns all readings.
    pub(super) fn end(mut self) -> Vec<GpuReading> {
        self.ending.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

pub(super) fn run(setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
    let after = read(&setup.args.folders, setup.gpu.number).map_err(|error| anyhow!(error))?;
    let (before, during) = {
        let found = setup.found();
        (found.before.clone(), found.during.clone())
    };
    match before {
        Some(Ok(before)) => say(sheet, "before", &before),
        Some(Err(error)) => sheet.failed("before", error),
        None => {}
    }
    say(sheet, "after", &after);
    if during.is_empty() {
        sheet.info("during end_to_end", "that section was not run");
        return Ok(());
    }
    let most = |of: fn(&GpuReading) -> Option<u32>| during.iter().filter_map(of).max().map(f64::from);
    for (what, value, unit) in [
        ("utilisation during end_to_end, most", most(|r| r.utilization), "%"),
        ("temperature during end_to_end, most", most(|r| r.temperature), "degrees C"),
        ("power during end_to_end, most", most(|r| r.power).map(|mw| mw / 1e3), "W"),
    ] {
        match value {
            Some(value) => sheet.note(what, value, unit, ""),
            None => sheet.info(what, "not reported"),
        }
    }
    let throttled: Vec<bool> = during.iter().filter_map(|reading| reading.throttled).collect();
    let slowed = throttled.iter().filter(|&&slowed| slowed).count();
    let share = 100.0 * slowed as f64 / throttled.len().max(1) as f64;
    sheet.note("throttled by heat or power during end_to_end", share, "% of readings", "");
    let errors = |reading: &GpuReading| reading.ecc_errors.map(|errors| errors as f64);
    if let (Some(first), Some(last)) = (during.first().and_then(errors), errors(&after)) {
        sheet.hold(
            "uncorrectable memory errors since end_to_end began",
            last - first,
            "",
            Target::AtMost(0.0),
            "",
        );
    }
    Ok(())
}

fn say(sheet: &Sheet, when: &str, reading: &GpuReading) {
    let field = |what: &str, value: Option<f64>, unit: &str| match value {
        Some(value) => format!("{what} {value:.0}{unit}"),
        None => format!("{what} not reported"),
    };
    let gib = reading.memory_used.map(|bytes| bytes as f64 / f64::from(1 << 20));
    let text = [
        field("temperature", reading.temperature.map(f64::from), " degrees C"),
        field("power", reading.power.map(|mw| f64::from(mw) / 1e3), " W"),
        field("utilisation", reading.utilization.map(f64::from), " %"),
        field("memory in use", gib, " MiB"),
        format!("throttled {}", reading.throttled.map_or("not reported", |is| if is { "yes" } else { "no" })),
    ];
    sheet.info(when, text.join(", "));
}
