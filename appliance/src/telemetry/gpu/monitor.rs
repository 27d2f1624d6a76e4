//! The GPUs of this machine at this moment. NVML is opened when they are first asked for, and read at most once a second.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use gpu_kernels::cuda::{GpuError, GpuReading, LibraryError, Nvml};
use inference::engine::DeviceKind;
use tokio::sync::Mutex;

/// A reading is given again until it is this old, however many scrapers ask.
const MAX_AGE: Duration = Duration::from_secs(1);
/// Longest wait for a reading: a driver whose GPU has failed may not return, and the other metrics are wanted then too.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads the GPUs of this machine.
#[derive(Debug)]
pub struct GpuMonitor {
    folders: Vec<PathBuf>,
    /// None where there is none to use, or no GPU is wanted.
    nvml: OnceLock<Option<Nvml>>,
    last: Arc<Mutex<Last>>,
}

#[derive(Debug, Default)]
struct Last {
    read: Option<Instant>,
    gpus: Vec<Option<GpuReading>>,
}

impl GpuMonitor {
    /// Of all GPUs that NVML sees, also those that compute nothing here; of none where the CPU was asked for.
    pub fn new(wanted: DeviceKind, library_folders: &[PathBuf]) -> Arc<Self> {
        let nvml = if wanted == DeviceKind::Cpu { OnceLock::from(None) } else { OnceLock::new() };
        Arc::new(Self { folders: library_folders.to_vec(), nvml, last: Arc::default() })
    }

    /// What the GPUs report, by their numbers, at most a second old. None is a GPU that refuses or does not answer in
    /// time. Empty without NVML.
    pub async fn readings(self: &Arc<Self>) -> Vec<Option<GpuReading>> {
        if matches!(self.nvml.get(), Some(None)) {
            return Vec::new();
        }
        let answer = tokio::time::timeout(READ_TIMEOUT, Arc::clone(self).newest()).await;
        answer.ok().flatten().unwrap_or_else(|| {
            tracing::debug!("NVML does not answer");
            let gpus = self.nvml.get().and_then(Option::as_ref).map_or(0, Nvml::gpus);
            vec![None; gpus as usize]
        })
    }

    /// None if the reading panics.
    async fn newest(self: Arc<Self>) -> Option<Vec<Option<GpuReading>>> {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if last.read.is_none_or(|read| read.elapsed() >= MAX_AGE) {
            // The lock goes along: while one reading does not return no other is begun.
            let reading = tokio::task::spawn_blocking(move || {
                self.read(&mut last);
                last
            });
            last = reading.await.ok()?;
        }
        Some(last.gpus.clone())
    }

    fn read(&self, last: &mut Last) {
        let Some(nvml) = self.nvml.get_or_init(|| open(&self.folders)) else { return };
        let read = |gpu: u32| match nvml.read(gpu) {
            Ok(reading) => Some(reading),
            Err(error) => {
                // Said when it begins, not at every reading.
                if last.gpus.get(gpu as usize) != Some(&None) {
                    tracing::warn!(gpu, %error, remedy = error.remedy(), "the GPU can't be read");
                }
                None
            }
        };
        last.gpus = (0..nvml.gpus()).map(read).collect();
        last.read = Some(Instant::now());
    }
}

fn open(folders: &[PathBuf]) -> Option<Nvml> {
    match Nvml::open(folders) {
        Ok(nvml) => Some(nvml),
        Err(error @ GpuError::Library(LibraryError::Missing { .. })) => {
            tracing::debug!(%error, "no metrics of GPUs");
            None
        }
        Err(error) => {
            tracing::warn!(%error, remedy = error.remedy(), "no metrics of GPUs");
            None
        }
    }
}
