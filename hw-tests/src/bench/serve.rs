//! What HTTP and everything around the model cost: CPU time a request against the in-process limit.

use anyhow::{Context, ensure};

use super::limit::plan;
use super::result::{Section, Target, median};
use super::setup::{Setup, bench_frames, progress};
use crate::frames::Size;
use crate::limit::Engine;

/// Pairs of one measurement each; odd, so that the median is one of them.
const PAIRS: usize = 3;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let (engine, plan) = (Engine::load(Some(&setup.bundle))?, plan(setup));
    let mut section = Section::new(
        "serve",
        format!(
            "CPU time of the whole server process a request, over HTTP at saturation (8 clients, every body \
             unique), over CPU time an image of the in-process limit. Median of {PAIRS} pairs, measured in turn."
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
            format!("{name}: CPU a request / CPU an image"),
            median(&ratios),
            "",
            Target::AtMost(1.10),
        );
        section.note(format!("{name}: CPU a request"), median(&requests), "ms");
        section.note(format!("{name}: CPU an image"), median(&images), "ms");
        section.note(format!("{name}: requests a second"), median(&rates), "");
    }
    Ok(section)
}
