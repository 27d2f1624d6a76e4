//! JPEG to species: through a lane in this process, and through the daemon.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use inference::bundle::find_bundle;
use inference::engine::Provider;
use inference::lanes::gpu::{build, gpu_factory};
use inference::lanes::{Built, LaneObserver, LaneSettings, Lanes, StageTimings};

use super::nvml;
use super::report::Sheet;
use super::setup::{Frames, Model, Setup};
use crate::bench::{Target, without_deployment};
use crate::daemon::{Daemon, free_port};
use crate::frames;
use crate::load::{self, Options, Spec};

/// Longest for one image or request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Seconds that a provider takes to load.
const LOAD: f64 = 20.0;
/// The input size of the model, which needs no resizing.
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
        sheet.info(
            "over HTTP",
            "not measured: the daemon is started with the cuda provider, which is not among those chosen",
        );
    } else if sheet.has_time("cuda, over HTTP", LOAD) {
        sheet.attempt("cuda, over HTTP", || over_http(setup, sheet, &sets));
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
            None => sheet.info(what, "not known: its section was not run or failed"),
        }
    }
    lanes.stop();
    Ok(())
}

/// A lane on the suite's GPU, with exactly this provider.
pub(super) fn start(setup: &Setup, model: &Model, provider: Provider) -> anyhow::Result<Lanes> {
    let settings = Arc::new(setup.settings(provider)?);
    // Built here, since the factory would use CUDA as fallback while TensorRT builds its engine.
    let choice = (setup.gpu.number, provider);
    let device = build(&model.runtime, &model.bundle, &model.file, &settings, choice)?;
    let factory = gpu_factory(&model.runtime, &model.bundle, &model.file, &settings);
    let lanes = LaneSettings::new(1, 2 * setup.plan.in_flight);
    let built = vec![Built { device, upgrade: None }];
    Ok(Lanes::start_batches(&lanes, built, &factory, None, Arc::new(FailureLog))?)
}

/// Images per second with `in_flight` images in flight, and the mean time by stage.
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
            // The measurement begins when the lane is full.
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

/// Logs failures of the device; the suite counts everything else itself.
pub(super) struct FailureLog;

impl LaneObserver for FailureLog {
    fn device_failed(&self, _: usize, kind: &'static str, _: usize) {
        eprintln!("  the GPU's lane failed: {kind}");
    }
}

/// Through the daemon, under the load generator.
fn over_http(setup: &Setup, sheet: &Sheet, sets: &[(&str, Frames)]) -> anyhow::Result<()> {
    let (dir, port) = (tempfile::tempdir()?, free_port()?);
    std::fs::write(dir.path().join("weir.toml"), configuration(setup)?)?;
    let mut daemon = Daemon::start(command(setup, port, dir.path())?, port, &dir.path().join("weir.log"))?;
    daemon.wait_ready("/health/ready")?;
    for (name, frames) in sets {
        let what = format!("cuda, {name}: over HTTP");
        if !sheet.has_time(&what, 2.0 * setup.plan.seconds.as_secs_f64() + 2.0) {
            continue;
        }
        let target = daemon.target("/predict");
        let requests = load::requests(&target, frames, &Options { unique: true, ..Options::default() })?;
        let spec = Spec {
            concurrency: setup.plan.clients,
            duration: setup.plan.seconds,
            timeout: TIMEOUT,
            ..Spec::new(target, requests)
        };
        let report = spec.run()?;
        if report.successes == 0 {
            bail!("{name}: no request succeeded: {}", report.trouble().unwrap_or_default());
        }
        let latency = report.ok.as_ref().map(|ok| format!("p50 {:.1} ms, p99 {:.1} ms", ok.p50, ok.p99));
        let note = [latency, report.trouble()].into_iter().flatten().collect::<Vec<_>>().join("; ");
        let note = format!("{} clients; {note}", setup.plan.clients);
        sheet.note(what, report.ok_per_s, "images/s", &note);
        daemon.check_running()?;
    }
    daemon.stop()
}

/// Written to the daemon's working folder, so that no other weir.toml is read.
fn configuration(setup: &Setup) -> anyhow::Result<String> {
    let absolute = |path: &PathBuf| {
        let path = path.canonicalize().with_context(|| path.display().to_string())?;
        // A JSON string is a TOML string.
        Ok::<_, anyhow::Error>(serde_json::to_string(&path.display().to_string())?)
    };
    let folders: Vec<String> = setup.args.folders.iter().map(absolute).collect::<Result<_, _>>()?;
    let mut text = format!("[engine]\ndevice = \"cuda\"\nlibrary_folders = [{}]\n", folders.join(", "));
    if let Some(library) = setup.onnxruntime() {
        text.push_str(&format!("onnxruntime = {}\n", absolute(&library)?));
    }
    Ok(text)
}

fn command(setup: &Setup, port: u16, data: &Path) -> anyhow::Result<Command> {
    let weir = match &setup.args.weir {
        Some(weir) => weir.clone(),
        None => std::env::current_exe()?.with_file_name("weir"),
    };
    let weir = weir.canonicalize().with_context(|| format!("no weir at {}: give --weir", weir.display()))?;
    let bundle = find_bundle(setup.args.bundle.as_deref())?.canonicalize().context("the model bundle")?;
    let mut command = Command::new(weir);
    without_deployment(&mut command);
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}")]).arg("--data-dir").arg(data);
    command.env("WEIR__MODEL__BUNDLE", bundle).current_dir(data);
    // The daemon numbers the GPUs visible with this variable; the suite's GPU has to be the first.
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let chosen = visible.split(',').nth(setup.gpu.number as usize).filter(|chosen| !chosen.is_empty());
    command.env("CUDA_VISIBLE_DEVICES", chosen.map_or(setup.gpu.number.to_string(), str::to_owned));
    Ok(command)
}
