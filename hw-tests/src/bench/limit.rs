//! The in-process limit for every frame size, and the CPU time per request of the server relative to it.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::result::{Section, Target, median};
use super::setup::{Setup, bench_frames, progress};
use crate::frames::Size;
use crate::limit::{Engine, Plan};

/// Pairs of one measurement each; odd, so that the median is one of them.
const PAIRS: usize = 3;

/// Every core, over the time of one measurement.
pub(super) fn plan(setup: &Setup) -> Plan {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Plan { threads, warmup: Duration::from_millis(500), duration: setup.seconds() }
}

/// The in-process loop for every frame size.
pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let (engine, plan) = (Engine::load(Some(&setup.bundle))?, plan(setup));
    let method = format!(
        "Decode, preprocess and infer in one process without HTTP, {} threads, {}.",
        plan.threads,
        engine.describe()
    );
    let mut section = Section::new("limit", method);
    for size in Size::ALL {
        progress(size.name());
        let limit = engine.measure(&bench_frames(size)?, &plan)?;
        section.note(format!("{}: images per second", size.name()), limit.images_per_s, "");
        section.note(format!("{}: CPU time per image", size.name()), limit.cpu_ms, "ms");
        section.note(format!("{}: decode", size.name()), limit.decode_ms, "ms");
        section.note(format!("{}: preprocess", size.name()), limit.preprocess_ms, "ms");
        section.note(format!("{}: infer", size.name()), limit.infer_ms, "ms");
    }
    Ok(section)
}

/// CPU time per request over HTTP, relative to the in-process limit: the cost of HTTP and everything around the model.
pub(super) fn serve(setup: &Setup) -> anyhow::Result<Section> {
    let (engine, plan) = (Engine::load(Some(&setup.bundle))?, plan(setup));
    let mut section = Section::new(
        "serve",
        format!(
            "CPU time of the whole server process per request, over HTTP at saturation (8 clients, every body \
             unique), over CPU time per image of the in-process limit. Median of {PAIRS} pairs, measured in turn."
        ),
    );
    for size in Size::ALL {
        let frames = bench_frames(size)?;
        let server = setup.start_weir(&setup.bundle)?;
        let (mut ratios, mut requests, mut images, mut rates) = (vec![], vec![], vec![], vec![]);
        for pair in 1..=PAIRS {
            let limit = engine.measure(&frames, &plan)?;
            let report = server.load(&frames, true, setup.seconds())?.run()?;
            if let Some(trouble) = report.trouble() {
                anyhow::bail!("{}: {trouble}", size.name());
            }
            let usage = report.usage.as_ref().context("the server's CPU time was not read")?;
            ensure!(usage.ok > 0, "no request succeeded");
            let (request, image) = (usage.cpu_ms_per_ok(), limit.cpu_ms);
            progress(&format!("{} {pair}/{PAIRS}: {request:.3} ms over {image:.3} ms", size.name()));
            ratios.push(request / image);
            requests.push(request);
            images.push(image);
            rates.push(report.ok_per_s);
        }
        let name = size.name();
        section.hold(
            format!("{name}: CPU per request / CPU per image"),
            median(&ratios),
            "",
            Target::AtMost(1.10),
        );
        section.note(format!("{name}: CPU per request"), median(&requests), "ms");
        section.note(format!("{name}: CPU per image"), median(&images), "ms");
        section.note(format!("{name}: requests per second"), median(&rates), "");
    }
    Ok(section)
}
