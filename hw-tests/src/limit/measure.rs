//! The loop itself: each thread with a pipeline of its own, all counted over the same time.

use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use gpu_kernels::DecodeLimits;
use inference::bundle::{Bundle, DeviceTag, ModelFile, find_bundle};
use inference::engine::Runtime;
use inference::lanes::StageTimings;
use inference::lanes::cpu::CpuPipeline;
use serde::Serialize;

use crate::frames::Frame;
use crate::process;

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
    /// Not counted, at the start.
    pub warmup: Duration,
    /// Counted, after that.
    pub duration: Duration,
}

/// What the loop came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limit {
    /// Images classified in the counted time.
    pub images: u64,
    /// Images a second, all threads together.
    pub images_per_s: f64,
    /// CPU time of this process an image, in milliseconds.
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

/// What one thread has done.
#[derive(Clone, Copy, Default)]
struct Done {
    images: u64,
    stages: StageTimings,
}

impl Engine {
    /// Opens the bundle (the default one unless given) and ONNX Runtime.
    ///
    /// # Errors
    /// When either is not found or does not fit.
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
                    // Each begins elsewhere, so that they are not all at the same frame.
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
        // Also after a failure: the others wait here.
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
