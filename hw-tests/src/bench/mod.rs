//! The benches: each runs the built daemon, measures one property and compares the number with its target.

mod accuracy;
mod cloud;
mod crash;
mod footprint;
mod isolation;
mod latency;
mod limit;
mod peers;
mod result;
mod rollout;
mod setup;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use serde_json::json;

pub(crate) use result::short;
pub use result::{Row, Section, Target, median};
pub use setup::Setup;
pub(crate) use setup::without_deployment;

use crate::process::machine;

/// Which bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Every one, in this order.
    All,
    /// Labelled photos: fish found, others let pass, int8 against fp32.
    Accuracy,
    /// Decode, preprocess and infer in-process: what the machine can do.
    Limit,
    /// CPU time per request over HTTP, against the limit.
    Serve,
    /// Requests per second against FastAPI, Pillow and ONNX Runtime.
    Peers,
    /// From process start to first prediction.
    Startup,
    /// Resident memory at saturation.
    Memory,
    /// Latency of cached answers.
    Cache,
    /// Latency at eight times the load that saturates.
    Overload,
    /// Latency of one client while another misbehaves.
    Isolation,
    /// kill -9 under load: no acknowledged prediction is lost.
    Crash,
    /// Swaps of the model under full load.
    Rollout,
    /// Events made durable per second, and what that costs a prediction.
    Outbox,
    /// Batch images per second from Kafka and S3, against the limit.
    Worker,
    /// Latency of a batch's status while workers have all cores.
    Status,
    /// A million events that waited for the broker.
    Uplink,
}

impl Which {
    const EACH: [Self; 15] = [
        Self::Accuracy,
        Self::Limit,
        Self::Serve,
        Self::Peers,
        Self::Startup,
        Self::Memory,
        Self::Cache,
        Self::Overload,
        Self::Isolation,
        Self::Crash,
        Self::Rollout,
        Self::Outbox,
        Self::Worker,
        Self::Status,
        Self::Uplink,
    ];

    fn run(self, setup: &Setup) -> anyhow::Result<Vec<Section>> {
        match self {
            Self::All => Self::EACH.iter().map(|bench| bench.run_one(setup)).collect(),
            one => Ok(vec![one.run_one(setup)?]),
        }
    }

    fn run_one(self, setup: &Setup) -> anyhow::Result<Section> {
        eprintln!("{self:?}");
        let start = Instant::now();
        let section = match self {
            Self::Accuracy => accuracy::run(setup),
            Self::Limit | Self::All => limit::run(setup),
            Self::Serve => limit::serve(setup),
            Self::Peers => peers::run(setup),
            Self::Startup => footprint::startup(setup),
            Self::Memory => footprint::memory(setup),
            Self::Cache => latency::cache(setup),
            Self::Overload => latency::overload(setup),
            Self::Isolation => isolation::run(setup),
            Self::Crash => crash::run(setup),
            Self::Rollout => rollout::run(setup),
            Self::Outbox => cloud::outbox::run(setup),
            Self::Worker => cloud::worker::run(setup),
            Self::Status => cloud::status::run(setup),
            Self::Uplink => cloud::uplink::run(setup),
        };
        let section = section.with_context(|| format!("bench {self:?}"))?;
        write!(std::io::stdout(), "{section}")?;
        writeln!(std::io::stdout(), "({:.0} s)\n", start.elapsed().as_secs_f64())?;
        Ok(section)
    }
}

/// `weir-rig bench`: measure the built daemon against its targets.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which benches.
    #[arg(value_enum, default_values = ["all"])]
    which: Vec<Which>,
    #[command(flatten)]
    setup: Setup,
    /// Write the results as JSON here, and as markdown beside it.
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
}

impl Args {
    /// Runs the benches. The exit code is 1 when a target is missed.
    ///
    /// # Errors
    /// When a prerequisite of a bench is missing, or a server fails.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let mut sections = Vec::new();
        for which in &self.which {
            sections.extend(which.run(&self.setup)?);
            if let Some(path) = &self.out {
                // Written after each bench, so that a failing bench does not lose the results of the others.
                write_results(path, &sections)?;
            }
        }
        let failed: Vec<_> = sections.iter().filter(|section| !section.passed()).map(|s| s.name).collect();
        if failed.is_empty() {
            writeln!(std::io::stdout(), "every target met ({} benches)", sections.len())?;
            return Ok(ExitCode::SUCCESS);
        }
        writeln!(std::io::stdout(), "targets missed in: {}", failed.join(", "))?;
        Ok(ExitCode::FAILURE)
    }
}

fn write_results(path: &Path, sections: &[Section]) -> anyhow::Result<()> {
    let machine = machine();
    let json = serde_json::to_string_pretty(&json!({ "machine": machine, "sections": sections }))?;
    let mut markdown = format!("Measured by `weir-rig bench` on: {machine}.\n");
    for section in sections {
        markdown.push_str(&format!("\n{section}"));
    }
    for (path, text) in [(path.to_owned(), json + "\n"), (path.with_extension("md"), markdown)] {
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
