//! The network alone: images per second by batch, with each provider, with and without CUDA graphs.

use std::time::{Duration, Instant};

use inference::engine::Provider;
use inference::lanes::gpu::GpuEngine;

use super::report::Sheet;
use super::setup::Setup;

/// Seconds that a provider takes to load; TensorRT builds its engine first.
const LOAD: f64 = 20.0;
const BUILD: f64 = 100.0;
/// Time between two waits for the GPU.
const STRETCH: Duration = Duration::from_millis(100);

pub(super) fn run(setup: &Setup, sheet: &Sheet) -> anyhow::Result<()> {
    for provider in setup.providers()? {
        let graphs: &[bool] = if provider == Provider::Host { &[false] } else { &[false, true] };
        for &graphs in graphs {
            let what = match (provider, graphs) {
                (Provider::Host, _) => "host".to_owned(),
                (_, true) => format!("{provider}, CUDA graphs"),
                (_, false) => format!("{provider}, no CUDA graphs"),
            };
            let seconds = match provider {
                Provider::Host => 1.0,
                Provider::Tensorrt if !graphs => BUILD,
                _ => LOAD,
            };
            if sheet.has_time(&what, seconds) {
                sheet.attempt(&what, || measure(setup, sheet, provider, graphs, &what));
            }
        }
    }
    Ok(())
}

fn measure(setup: &Setup, sheet: &Sheet, provider: Provider, graphs: bool, what: &str) -> anyhow::Result<()> {
    let (model, settings) = (setup.model_for(provider)?, setup.settings(provider)?);
    let built =
        provider != Provider::Tensorrt || settings.engine_cache.is_built(&model.file, setup.gpu.number);
    let began = Instant::now();
    let choice = (setup.gpu.number, provider, graphs);
    let mut engine = GpuEngine::build(&model.runtime, &model.bundle, &model.file, &settings, choice)?;
    let took = began.elapsed().as_secs_f64();
    let done = if built { "loaded and warmed" } else { "built, loaded and warmed" };
    let note = format!("{}, batches of {:?}", model.file.precision, engine.sizes());
    sheet.note(format!("{what}: {done}"), took, "s", &note);
    if provider == Provider::Tensorrt {
        settings.engine_cache.set_built(&model.file, setup.gpu.number);
    }
    let mut largest = 0.0;
    for images in engine.sizes().to_vec() {
        let row = format!("{what}, batch {images}");
        if !sheet.has_time(&row, setup.plan.seconds.as_secs_f64()) {
            continue;
        }
        let rate = rate(&mut engine, images, setup.plan.seconds / 2)?;
        sheet.note(row, rate, "images/s", &format!("{:.3} ms per batch", 1e3 * images as f64 / rate));
        largest = rate;
    }
    let mut found = setup.found();
    let best = found.engine.entry(provider.to_string()).or_default();
    *best = best.max(largest);
    Ok(())
}

fn rate(engine: &mut GpuEngine, images: usize, duration: Duration) -> anyhow::Result<f64> {
    // The first run of a shape may include planning.
    engine.run(images, 2)?;
    let once = engine.run(images, 2)? / 2;
    let stretch = STRETCH.min(duration).as_secs_f64() / once.as_secs_f64().max(1e-6);
    let stretch = (stretch.ceil() as usize).clamp(1, 10_000);
    let (mut batches, mut time) = (0, Duration::ZERO);
    while time < duration {
        time += engine.run(images, stretch)?;
        batches += stretch;
    }
    Ok((batches * images) as f64 / time.as_secs_f64())
}
