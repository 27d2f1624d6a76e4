//! The GPU suite: checks and measures everything that runs on an NVIDIA GPU, in one command that needs no network and no
//! compiler. The `gpu` command.
//!
//! [`suite`] runs the sections one after the other on a separate thread; each is isolated and sends its rows through a
//! sheet. The [`report`] collects them, prints them and writes them as JSON.

mod agreement;
mod bandwidth;
mod decode;
mod definition;
mod end_to_end;
mod engine;
mod kernel;
mod nvml;
mod pictures;
mod report;
mod setup;
mod suite;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use gpu_kernels::cuda::{Device, Driver, GpuError};
use inference::engine::Provider;

pub use report::{Outcome, Report, SuiteRow};
pub use suite::Which;

use crate::frames::Size;
use crate::load;
use setup::Setup;

/// `weir-rig gpu`: the GPU suite. It needs a GPU, no network and no compiler, and less than eight minutes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Folders with NVIDIA's libraries and ONNX Runtime: the libraries themselves, or a `site-packages` with PyPI's wheels.
    #[arg(long = "folder", num_args = 1.., value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Number of the GPU, among those visible with CUDA_VISIBLE_DEVICES.
    #[arg(long, default_value_t = 0)]
    gpu: u32,
    /// A folder of photos for comparing the kernel and the GPU with the CPU.
    #[arg(long, env = "WEIR_PHOTOS", value_name = "DIR")]
    photos: Option<PathBuf>,
    /// The model bundle; by default the one that `weir` finds.
    #[arg(long, overrides_with = "bundle", value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Execution provider; can be given several times. By default those whose libraries are found.
    #[arg(long = "provider", value_enum)]
    providers: Vec<ProviderName>,
    /// The built `weir`; by default the one in the folder of this program.
    #[arg(long)]
    weir: Option<PathBuf>,
    /// Write all numbers as JSON here.
    #[arg(long, default_value = "gpu.json", overrides_with = "out", value_name = "FILE.json")]
    out: PathBuf,
    /// Seconds that each single measurement counts.
    #[arg(long, default_value_t = 1.5, value_parser = load::counted_seconds, value_name = "SECONDS")]
    seconds_per_measurement: f64,
    /// Only these sections.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,...")]
    only: Vec<Which>,
    /// Seconds for the whole suite; measurements that do not fit are reported as left out and make the exit code 1.
    #[arg(long, default_value_t = 450.0, value_parser = load::counted_seconds, value_name = "SECONDS")]
    budget: f64,
    /// Fewer cases, for the run under compute-sanitizer.
    #[arg(long, hide = true)]
    few: bool,
}

/// An execution provider, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ProviderName {
    /// ONNX Runtime's CUDA provider.
    Cuda,
    /// ONNX Runtime's TensorRT provider.
    Tensorrt,
    /// The CPU, for a simulated GPU.
    Host,
}

impl From<ProviderName> for Provider {
    fn from(name: ProviderName) -> Self {
        match name {
            ProviderName::Cuda => Self::Cuda,
            ProviderName::Tensorrt => Self::Tensorrt,
            ProviderName::Host => Self::Host,
        }
    }
}

impl Args {
    /// Runs the suite, prints the table and writes the JSON. The exit code is 1 when a section failed, a target is missed, or
    /// something was left out.
    ///
    /// # Errors
    /// When there is no GPU to use, with a remedy, or the JSON cannot be written.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let report = self.measure()?;
        write!(std::io::stdout(), "{report}")?;
        std::io::stdout().flush()?;
        if report.hangs {
            // A regular exit would wait for the GPU, like the section that hangs.
            std::process::abort();
        }
        Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Runs the suite and writes the JSON.
    ///
    /// # Errors
    /// As [`Args::run`].
    pub fn measure(&self) -> anyhow::Result<Report> {
        let until = Instant::now() + Duration::from_secs_f64(self.budget);
        let remedied = |error: GpuError| anyhow!("{error}. Remedy: {}", error.remedy());
        let driver = Driver::probe(&self.folders).map_err(remedied)?;
        // Checks first whether it can be used at all.
        let gpu = Device::open(&self.folders, self.gpu).map_err(remedied)?.gpu().clone();
        let seconds = Duration::from_secs_f64(self.seconds_per_measurement);
        let simulated = gpu.name.starts_with("Simulated");
        let plan = Plan::new(seconds, simulated, self.few);
        let setup = Setup::new(self.clone(), driver, gpu, plan).context("preparing the suite")?;
        let report = suite::run(setup, until, &self.out)?;
        report.write(&self.out)?;
        Ok(report)
    }
}

/// Sizes, counts and times of the measurements.
#[derive(Clone, Debug)]
struct Plan {
    /// Duration of each measurement.
    seconds: Duration,
    /// Sizes of frame.
    sizes: Vec<Size>,
    /// Different frames of each size, at most.
    frames: usize,
    /// Whether the kernel gets few and small images.
    few_images: bool,
    /// Bytes of the copy that measures the memory's bandwidth.
    copy_bytes: usize,
    /// Number of copies.
    copies: usize,
    /// Batches of the kernel.
    batches: Vec<usize>,
    /// Number of batches for measuring the host's overhead, and the images of each.
    overhead: (usize, usize),
    /// Largest batch of nvJPEG.
    decode_batch: usize,
    /// Largest batch of the engine.
    max_batch: usize,
    /// Images in flight, enough to fill a lane.
    in_flight: usize,
    /// Largest number of photos.
    photos: usize,
    /// Clients over HTTP.
    clients: usize,
}

impl Plan {
    fn new(seconds: Duration, simulated: bool, few_images: bool) -> Self {
        if simulated {
            return Self {
                seconds,
                sizes: vec![Size::Vga, Size::P1080],
                frames: 2,
                few_images: true,
                copy_bytes: 4 << 20,
                copies: 3,
                batches: vec![1, 2],
                overhead: (4, 2),
                decode_batch: 2,
                max_batch: 2,
                in_flight: 12,
                photos: 4,
                clients: 4,
            };
        }
        Self {
            seconds,
            sizes: Size::ALL.to_vec(),
            frames: 12,
            few_images,
            copy_bytes: 1 << 30,
            copies: 15,
            batches: vec![1, 8, 64],
            overhead: (400, 64),
            decode_batch: 64,
            max_batch: 64,
            in_flight: 384,
            photos: usize::MAX,
            clients: 256,
        }
    }

    /// The largest batch of the kernel.
    fn largest_batch(&self) -> usize {
        self.batches.iter().copied().max().unwrap_or(1)
    }
}
