//! The in-process limit: decode, preprocess and infer on every core without HTTP, all threads counted over the same time, and
//! the `limit` command.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use comfy_table::{CellAlignment, Table, presets};
use gpu_kernels::DecodeLimits;
use inference::bundle::{Bundle, DeviceTag, ModelFile, find_bundle};
use inference::engine::Runtime;
use inference::lanes::StageTimings;
use inference::lanes::cpu::CpuPipeline;
use serde::Serialize;

use crate::frames::{self, Frame, Sizes};
use crate::load::counted_seconds;
use crate::process;

/// `weir-rig limit`: the throughput of the machine without a server.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Rendered camera frames of this size.
    #[arg(long, value_enum, default_value = "all", conflicts_with = "images")]
    frames: Sizes,
    /// The pictures of this folder.
    #[arg(long)]
    images: Option<PathBuf>,
    /// The model bundle; by default the one that `weir` finds.
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// How many threads, each with its own decoder and session; one per core unless given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// How many seconds are counted, for each size.
    #[arg(long, default_value_t = 5.0, value_parser = counted_seconds)]
    duration: f64,
}

impl Args {
    /// Measures and prints a table.
    ///
    /// # Errors
    /// When the bundle or ONNX Runtime does not load, or an image cannot be classified.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let sets: Vec<(String, Vec<Frame>)> = match &self.images {
            Some(dir) => vec![(dir.display().to_string(), frames::read_dir(dir)?)],
            None => {
                let rendered = self.frames.list().into_iter().map(|size| {
                    anyhow::Ok((size.name().to_owned(), frames::render(size, size.bench_count())?))
                });
                rendered.collect::<Result<_, _>>()?
            }
        };
        let engine = Engine::load(self.bundle.as_deref())?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let plan = Plan {
            threads: self.threads.map_or(cores, usize::from),
            warmup: Duration::from_millis(500),
            duration: Duration::from_secs_f64(self.duration),
        };
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["images", "images/s", "CPU ms", "decode ms", "preprocess ms", "infer ms"]);
        for (name, frames) in sets {
            let limit = engine.measure(&frames, &plan)?;
            let ms = [limit.cpu_ms, limit.decode_ms, limit.preprocess_ms, limit.infer_ms];
            let numbers = ms.map(|ms| format!("{ms:.2}"));
            table.add_row([name, format!("{:.1}", limit.images_per_s)].into_iter().chain(numbers));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(std::io::stdout(), "{}, {} threads\n{table}", engine.describe(), plan.threads)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A bundle's CPU model and the runtime to run it.
pub struct Engine {
    runtime: Runtime,
    bundle: Bundle,
    model: ModelFile,
}

/// How long and on how many threads.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Threads, each with one pipeline.
    pub threads: usize,
    /// Duration of the warm-up, which is not counted.
    pub warmup: Duration,
    /// Duration of the measurement after that.
    pub duration: Duration,
}

/// Results of the loop.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limit {
    /// Images classified in the counted time.
    pub images: u64,
    /// Images per second, all threads together.
    pub images_per_s: f64,
    /// CPU time of this process per image, in milliseconds.
    pub cpu_ms: f64,
    /// Mean time of the decode stage, in milliseconds.
    pub decode_ms: f64,
    /// Mean time of the preprocess stage, in milliseconds.
    pub preprocess_ms: f64,
    /// Mean time of the infer stage, in milliseconds.
    pub infer_ms: f64,
}

/// Wall clock and CPU time of this process, read at one moment.
#[derive(Clone, Copy)]
struct Clocks {
    time: Instant,
    cpu: Duration,
}

impl Clocks {
    fn now() -> Self {
        Self { time: Instant::now(), cpu: process::own_cpu_time() }
    }
}

/// Results of one thread.
#[derive(Clone, Copy, Default)]
struct Done {
    images: u64,
    stages: StageTimings,
}

impl Engine {
    /// Opens the bundle (the default one unless given) and ONNX Runtime.
    ///
    /// # Errors
    /// When either is not found or not usable.
    pub fn load(bundle: Option<&Path>) -> anyhow::Result<Self> {
        let bundle = Bundle::open(&find_bundle(bundle)?)?;
        let model = bundle.variant(DeviceTag::Cpu, None)?;
        Ok(Self { runtime: Runtime::load(None)?, bundle, model })
    }

    /// Model and precision, for reports.
    #[must_use]
    pub fn describe(&self) -> String {
        let manifest = self.bundle.manifest();
        format!("{} {} in {} on the CPU", manifest.name, manifest.version, self.model.precision)
    }

    /// Classifies the frames in turn on every thread.
    ///
    /// # Errors
    /// When a pipeline cannot be made or a frame cannot be classified; the frame is named.
    pub fn measure(&self, frames: &[Frame], plan: &Plan) -> anyhow::Result<Limit> {
        ensure!(!frames.is_empty(), "there is no image to classify");
        let start = Barrier::new(plan.threads);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..plan.threads)
                .map(|thread| {
                    // Each thread begins with another frame, so that they do not process the same one.
                    let first = thread * frames.len() / plan.threads;
                    let start = &start;
                    scope.spawn(move || self.work(frames, first, plan, start))
                })
                .collect();
            let done: Result<Vec<(Clocks, Done)>, _> = threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a thread of the limit loop panicked"))?)
                .collect();
            let end = Clocks::now();
            let (starts, done): (Vec<_>, Vec<_>) = done?.into_iter().unzip();
            // The first thread to start begins the measurement: this one may be scheduled after all of them.
            let elapsed = starts.iter().map(|start| end.time - start.time).max().unwrap_or_default();
            let cpu = starts.iter().map(|start| end.cpu - start.cpu).max().unwrap_or_default();
            sum_up(&done, elapsed, cpu)
        })
    }

    /// Classifies on one thread; returns when its counted time began and what it did.
    fn work(
        &self,
        frames: &[Frame],
        first: usize,
        plan: &Plan,
        start: &Barrier,
    ) -> anyhow::Result<(Clocks, Done)> {
        let mut next = frames.iter().cycle().skip(first);
        let warm = self.pipeline().and_then(|mut pipeline| {
            run(&mut pipeline, &mut next, plan.warmup)?;
            Ok(pipeline)
        });
        // Also after a failure, since the other threads wait at the barrier.
        start.wait();
        let began = Clocks::now();
        Ok((began, run(&mut warm?, &mut next, plan.duration)?))
    }

    fn pipeline(&self) -> anyhow::Result<CpuPipeline> {
        Ok(CpuPipeline::new(&self.runtime, &self.bundle, &self.model, DecodeLimits::default(), 1)?)
    }
}

fn run<'a>(
    pipeline: &mut CpuPipeline,
    frames: &mut impl Iterator<Item = &'a Frame>,
    duration: Duration,
) -> anyhow::Result<Done> {
    let start = Instant::now();
    let mut done = Done::default();
    while start.elapsed() < duration {
        let Some(frame) = frames.next() else { break };
        let timings = pipeline.classify(&frame.bytes).with_context(|| frame.name.clone())?.timings;
        done.images += 1;
        done.stages.decode += timings.decode;
        done.stages.preprocess += timings.preprocess;
        done.stages.infer += timings.infer;
    }
    Ok(done)
}

fn sum_up(done: &[Done], elapsed: Duration, cpu: Duration) -> anyhow::Result<Limit> {
    let images: u64 = done.iter().map(|done| done.images).sum();
    ensure!(images > 0, "no image was classified in {elapsed:?}");
    let mean = |stage: fn(&StageTimings) -> Duration| {
        let total: Duration = done.iter().map(|done| stage(&done.stages)).sum();
        total.as_secs_f64() * 1000.0 / images as f64
    };
    Ok(Limit {
        images,
        images_per_s: images as f64 / elapsed.as_secs_f64(),
        cpu_ms: cpu.as_secs_f64() * 1000.0 / images as f64,
        decode_ms: mean(|stages| stages.decode),
        preprocess_ms: mean(|stages| stages.preprocess),
        infer_ms: mean(|stages| stages.infer),
    })
}

/// On the default bundle and the real runtime.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::Size;

    fn engine() -> Engine {
        Engine::load(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fish/1"))).unwrap()
    }

    fn plan(threads: usize) -> Plan {
        Plan { threads, warmup: Duration::from_millis(50), duration: Duration::from_secs(2) }
    }

    #[test]
    fn stages_and_cpu_time_add_up() {
        let frames = frames::render(Size::Vga, 3).unwrap();
        let limit = engine().measure(&frames, &plan(1)).unwrap();
        assert!(limit.images >= 3, "{limit:?}");
        let stages = limit.decode_ms + limit.preprocess_ms + limit.infer_ms;
        // One thread: the stages cannot take more than the time between two images.
        assert!(limit.decode_ms > 0.0 && limit.preprocess_ms > 0.0 && limit.infer_ms > 0.0);
        assert!(stages <= 1000.0 / limit.images_per_s * 1.05, "{limit:?}");
        assert!(limit.cpu_ms > 0.0);
    }

    #[test]
    fn an_image_that_cannot_be_classified_is_named() {
        let mut frames = frames::render(Size::Vga, 2).unwrap();
        frames[1].bytes.truncate(300);
        let error = engine().measure(&frames, &plan(2)).unwrap_err();
        assert!(format!("{error:#}").contains("vga-001.jpg"), "{error:#}");
    }

    #[test]
    fn no_images_is_an_error() {
        assert!(engine().measure(&[], &plan(1)).is_err());
    }

    #[test]
    fn a_bundle_that_is_not_there_is_named() {
        let error = Engine::load(Some(Path::new("/no/such/bundle"))).err().unwrap();
        assert!(format!("{error:#}").contains("/no/such/bundle"), "{error:#}");
    }
}
