//! The `gpu` command's line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use gpu_kernels::cuda::{Device, Driver, GpuError};
use inference::engine::Provider;

use super::plan::Plan;
use super::report::Report;
use super::setup::Setup;
use super::suite::{self, Which};
use crate::load;

/// `weir-rig gpu`: the GPU suite. It needs a GPU, no network and no compiler, and less than eight minutes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Folders with NVIDIA's libraries and ONNX Runtime: the libraries themselves, or a `site-packages` with PyPI's wheels.
    #[arg(long = "folder", num_args = 1.., value_name = "DIR")]
    pub(super) folders: Vec<PathBuf>,
    /// Number of the GPU, among those that CUDA_VISIBLE_DEVICES leaves.
    #[arg(long, default_value_t = 0)]
    pub(super) gpu: u32,
    /// A folder of photos: kernel and CPU, GPU and CPU are compared on them.
    #[arg(long, env = "WEIR_PHOTOS", value_name = "DIR")]
    pub(super) photos: Option<PathBuf>,
    /// The model bundle; where `weir` looks for its default unless given.
    #[arg(long, overrides_with = "bundle", value_name = "DIR")]
    pub(super) bundle: Option<PathBuf>,
    /// What computes; can be given several times. Those whose libraries are here unless given.
    #[arg(long = "provider", value_enum)]
    pub(super) providers: Vec<ProviderName>,
    /// The built `weir`; the one beside this program unless given.
    #[arg(long)]
    pub(super) weir: Option<PathBuf>,
    /// Write all numbers as JSON here.
    #[arg(long, default_value = "gpu.json", overrides_with = "out", value_name = "FILE.json")]
    out: PathBuf,
    /// Seconds that each single measurement counts.
    #[arg(long, default_value_t = 1.5, value_parser = load::counted_seconds, value_name = "SECONDS")]
    seconds_per_measurement: f64,
    /// Only these sections.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,...")]
    pub(super) only: Vec<Which>,
    /// Seconds for all of it; what does not fit is left out, which is said and makes the exit code 1.
    #[arg(long, default_value_t = 450.0, value_parser = load::counted_seconds, value_name = "SECONDS")]
    budget: f64,
    /// Fewer cases, for the run under compute-sanitizer.
    #[arg(long, hide = true)]
    pub(super) few: bool,
}

/// What computes, on the command line.
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
            // An end in order would wait for the GPU, as the section does that hangs.
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
        // Whether it can be used at all, before anything else is said of it.
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
