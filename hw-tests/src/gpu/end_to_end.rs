//! JPEG to species: through a lane in this process, and through the daemon.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use inference::engine::Provider;
use inference::lanes::gpu::{build, gpu_factory};
use inference::lanes::{Built, LaneObserver, LaneSettings, Lanes, StageTimings};

use super::setup::{Frames, Model, Setup};
use super::sheet::Sheet;
use super::{http, nvml};
use crate::bench::Target;
use crate::frames;

/// Longest for one image.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds that a provider takes to load.
const LOAD: f64 = 20.0;
/// The size that needs no resizing: what the model sees.
const MODEL_SIDE: usize = 224;

pub(super) fn run(setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
    let watch = nvml::Watch::begin(setup);
    let measured = measure(setup, sheet);
    setup.found().during = watch.end();
    measured
}

fn measure(setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
    let model = frames::render_pixels((MODEL_SIDE, MODEL_SIDE), setup.plan.frames)?;
    let mut sets: Vec<(&str, Frames)> = vec![("224x224", model.into())];
    for &size in &setup.plan.sizes {
        sets.push((size.name(), setup.frames(size)?));
    }
    let providers = setup.providers()?;
    for &provider in &providers {
        let what = format!("{provider}, in-process");
        let seconds = if setup.simulated { 1.0 } else { LOAD };
        if sheet.has_time(&what, seconds) {
            sheet.attempt(&what, || in_process(setup, sheet, provider, &sets));
        }
    }
    if !providers.contains(&Provider::Cuda) {
        sheet.say(
            "over HTTP",
            "not measured: the daemon is started with the cuda provider, which is not among those chosen",
        );
    } else if sheet.has_time("cuda, over HTTP", LOAD) {
        sheet.attempt("cuda, over HTTP", || http::run(setup, sheet, &sets));
    }
    Ok(())
}

fn in_process(
    setup: &Setup,
    sheet: &Sheet,
    provider: Provider,
    sets: &[(&str, Frames)],
) -> anyhow::Result<()> {
    let model = setup.model_for(provider)?;
    let lanes = start(setup, &model, provider)?;
    for (name, frames) in sets {
        let what = format!("{provider}, {name}: JPEG to species");
        if !sheet.has_time(&what, 3.0 * setup.plan.seconds.as_secs_f64()) {
            continue;
        }
        let images: Vec<Bytes> = frames.iter().map(|frame| Bytes::from(frame.bytes.clone())).collect();
        classify(&lanes, &images, setup.plan.in_flight, setup.plan.seconds / 2)?;
        let (rate, stages) = classify(&lanes, &images, setup.plan.in_flight, setup.plan.seconds)?;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let StageTimings { decode, preprocess, infer } = stages;
        let (decode, preprocess, infer) = (ms(decode), ms(preprocess), ms(infer));
        let note =
            format!("an image: decode {decode:.3} ms, preprocess {preprocess:.4} ms, infer {infer:.4} ms");
        sheet.note(&what, rate, "images/s", &note);
        let (of, bound, least) = match *name {
            "1080p" => ("the decoders' rate", setup.found().decode_1080p, 90.0),
            "224x224" => {
                ("the engine's rate", setup.found().engine.get(&provider.to_string()).copied(), 80.0)
            }
            _ => continue,
        };
        let what = format!("{provider}, {name}: of {of}");
        match bound.filter(|&bound| bound > 0.0) {
            Some(bound) => sheet.hold_speed(what, 100.0 * rate / bound, "%", Target::AtLeast(least), ""),
            None => sheet.say(what, "not known: its section was not run or failed"),
        }
    }
    lanes.stop();
    Ok(())
}

/// A lane on the suite's GPU, with exactly this provider.
pub(super) fn start(setup: &Setup, model: &Model, provider: Provider) -> anyhow::Result<Lanes> {
    let settings = Arc::new(setup.settings(provider)?);
    // Built here, since the factory would have CUDA stand in while TensorRT builds its engine.
    let choice = (setup.gpu.number, provider);
    let device = build(&model.runtime, &model.bundle, &model.file, &settings, choice)?;
    let factory = gpu_factory(&model.runtime, &model.bundle, &model.file, &settings);
    let lanes = LaneSettings::new(1, 2 * setup.plan.in_flight);
    let built = vec![Built { device, upgrade: None }];
    Ok(Lanes::start_batches(&lanes, built, &factory, None, Arc::new(FailureLog))?)
}

/// Images a second with so many in flight, and the mean time by stage.
fn classify(
    lanes: &Lanes,
    images: &[Bytes],
    in_flight: usize,
    duration: Duration,
) -> anyhow::Result<(f64, StageTimings)> {
    let mut next = images.iter().cycle();
    let mut submit = || {
        let image = next.next().context("there is no image")?;
        Ok::<_, anyhow::Error>(lanes.submit(image.clone(), Instant::now() + TIMEOUT)?)
    };
    let mut waiting: VecDeque<_> = (0..in_flight).map(|_| submit()).collect::<Result<_, _>>()?;
    let (mut done, mut sum) = (0u32, StageTimings::default());
    let mut began = Instant::now();
    let mut filling = in_flight;
    while filling > 0 || began.elapsed() < duration {
        let answer = waiting.pop_front().context("nothing is in flight")?;
        let (classified, _) = answer.blocking_recv().context("the lane has ended")??;
        waiting.push_back(submit()?);
        if filling > 0 {
            // From when the lane is as full as it stays.
            filling -= 1;
            began = Instant::now();
            continue;
        }
        done += 1;
        sum.decode += classified.timings.decode;
        sum.preprocess += classified.timings.preprocess;
        sum.infer += classified.timings.infer;
    }
    let seconds = began.elapsed().as_secs_f64();
    for answer in waiting {
        answer.blocking_recv().context("the lane has ended")??;
    }
    ensure!(done > 0, "no image was classified in {duration:?}");
    let mean = StageTimings {
        decode: sum.decode / done,
        preprocess: sum.preprocess / done,
        infer: sum.infer / done,
    };
    Ok((f64::from(done) / seconds, mean))
}

/// Reports failures of the device; the suite counts everything else for itself.
pub(super) struct FailureLog;

impl LaneObserver for FailureLog {
    fn device_failed(&self, _: usize, kind: &'static str, _: usize) {
        eprintln!("  the GPU's lane failed: {kind}");
    }
}
