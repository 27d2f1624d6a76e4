//! The load generator and the `load` command.

mod connection;
mod pace;
mod report;
mod request;
mod response;
mod run;
mod tally;
mod target;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

pub use connection::{Answer, Client, Connection, Failure};
pub use report::{Report, Usage};
pub use request::{Options, Request};
pub use response::{ParseError, Reply, ResponseReader};
pub use run::{OnReply, Spec, Watch};
pub use tally::{FailureCount, Latency};
pub use target::Target;

use crate::frames::{self, Frame, Size};

/// A request for each frame.
///
/// # Errors
/// When bodies are to be unique and a frame is not a JPEG; the frame is named.
pub fn requests(target: &Target, frames: &[Frame], options: &Options) -> anyhow::Result<Arc<[Request]>> {
    let build = |frame: &Frame| Request::post(target, frame, options).with_context(|| frame.name.clone());
    frames.iter().map(build).collect()
}

/// `weir-rig load`: post images to a server and measure.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where to post.
    #[arg(long, default_value = "http://127.0.0.1:8080/predict")]
    url: String,
    /// Post the pictures of this folder, in turn.
    #[arg(long, conflicts_with = "frames")]
    images: Option<PathBuf>,
    /// Post rendered camera frames of this size.
    #[arg(long, value_enum, default_value = "vga")]
    frames: Size,
    /// How many clients, each with one request at a time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// How many seconds are counted.
    #[arg(long, default_value_t = 10.0, value_parser = counted_seconds)]
    duration: f64,
    /// How many seconds before that are not counted.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    warmup: f64,
    /// Requests per second, sent when they are due whether or not earlier ones are answered.
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// Stop after this many requests, warm-up included.
    #[arg(long)]
    requests: Option<u64>,
    /// Make every body unique, so that no cache can answer (the default; JPEG only).
    #[arg(long, conflicts_with = "repeat")]
    unique: bool,
    /// Post the files unchanged and repeatedly.
    #[arg(long)]
    repeat: bool,
    /// Send `X-Deadline-Ms`.
    #[arg(long)]
    deadline_ms: Option<u32>,
    /// Send this camera's name.
    #[arg(long)]
    camera: Option<String>,
    /// Seconds after which a client gives up a request.
    #[arg(long, default_value_t = 30.0, value_parser = counted_seconds)]
    timeout: f64,
    /// The server's process id, to report its CPU time and memory.
    #[arg(long)]
    pid: Option<u32>,
    /// Allow a server on another machine. Use it only on your own servers.
    #[arg(long)]
    allow_remote: bool,
    /// Write the result as JSON here.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Args {
    /// Runs the load and prints the result. The exit code is 1 when no request succeeded.
    ///
    /// # Errors
    /// When the URL is refused, or the images cannot be read.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let target = Target::parse(&self.url, self.allow_remote)?;
        let frames = match &self.images {
            Some(dir) => frames::read_dir(dir)?,
            None => frames::render(self.frames, self.frames.bench_count())?,
        };
        let options =
            Options { unique: !self.repeat, deadline_ms: self.deadline_ms, camera: self.camera.clone() };
        let requests = requests(&target, &frames, &options)?;
        let spec = Spec {
            concurrency: usize::from(self.concurrency),
            rate: self.rate,
            warmup: Duration::from_secs_f64(self.warmup),
            duration: Duration::from_secs_f64(self.duration),
            max_requests: self.requests,
            timeout: Duration::from_secs_f64(self.timeout),
            watch: self.pid.map(|pid| Watch { pid, children: true }),
            ..Spec::new(target, requests)
        };
        let report = spec.run()?;
        if let Some(path) = &self.json {
            let json = serde_json::to_vec_pretty(&report)?;
            std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
        }
        write!(std::io::stdout(), "{report}")?;
        Ok(if report.successes > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn bounded(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    let fits = (least..=most).contains(&value);
    fits.then_some(value).ok_or_else(|| format!("{value} is not between {least} and {most}"))
}

/// A measuring time on the command line, from a tenth of a second to an hour.
pub(crate) fn counted_seconds(text: &str) -> Result<f64, String> {
    bounded(text, 0.1, 3600.0)
}

fn seconds(text: &str) -> Result<f64, String> {
    bounded(text, 0.0, 3600.0)
}

fn rate(text: &str) -> Result<f64, String> {
    bounded(text, 0.01, 100_000.0)
}
