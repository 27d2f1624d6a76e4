//! Latency of cached answers, and of accepted and refused requests under overload.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};

use super::result::{Section, Target, median};
use super::setup::{Prediction, Setup, bench_frames, progress};
use crate::frames::{Size, render};
use crate::load::Spec;

/// Requests per second for cached answers.
const RATE: f64 = 100.0;
const ROUNDS: usize = 3;
/// Offered load relative to saturation.
const TIMES: f64 = 8.0;
/// Clients of the open loop: enough that one is always free, unless refusals are slow.
const CLIENTS: usize = 256;

/// Latency of cached answers.
pub(super) fn cache(setup: &Setup) -> anyhow::Result<Section> {
    let mut section = Section::new(
        "cache",
        format!(
            "One 1080p frame, known to the server, posted {RATE} times per second; from its intended time to the answer."
        ),
    );
    let frames = render(Size::P1080, 1)?;
    let server = setup.start_weir(&setup.bundle)?;
    let first = Prediction::of(&server.client()?.post(&frames[0])?)?;
    ensure!(!first.cached, "the first answer of a new server says that it was cached");
    let computed = Arc::new(AtomicU64::new(0));
    let counter = computed.clone();
    let load = Spec {
        rate: Some(RATE),
        on_reply: Some(Arc::new(move |reply| {
            if !Prediction::of(reply).is_ok_and(|prediction| prediction.cached) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        })),
        ..server.load(&frames, false, setup.seconds())?
    };
    let report = load.run()?;
    if let Some(trouble) = report.trouble() {
        anyhow::bail!(trouble);
    }
    let latency = report.ok.context("no request succeeded")?;
    section.hold("p99", latency.p99, "ms", Target::Below(2.0));
    section.hold(
        "answers that were not cached",
        computed.load(Ordering::Relaxed) as f64,
        "",
        Target::AtMost(0.0),
    );
    section.note("p50", latency.p50, "ms");
    section.note("p99.9", latency.p999, "ms");
    section.note("requests", latency.count as f64, "");
    Ok(section)
}

/// Latency of accepted and refused requests at eight times the load that saturates.
pub(super) fn overload(setup: &Setup) -> anyhow::Result<Section> {
    let server = setup.start_weir(&setup.bundle)?;
    let frames = bench_frames(Size::Vga)?;
    let capacity = server.capacity()?;
    let mut section = Section::new(
        "overload",
        format!(
            "VGA frames, every body unique. Saturation: {capacity} clients, as many as lanes and queue hold. Overload: an \
             open loop at {TIMES} times the throughput of that, latency from the intended start. Medians of {ROUNDS} rounds."
        ),
    );
    let (mut ratios, mut refused, mut offered) = (vec![], vec![], vec![]);
    let (mut before, mut during, mut rates, mut accepted) = (vec![], vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        let calm = Spec { concurrency: capacity, ..server.load(&frames, true, setup.seconds())? }.run()?;
        let p99 = calm.ok.as_ref().context("no request succeeded at saturation")?.p99;
        let rate = calm.ok_per_s * TIMES;
        let load = server.load(&frames, true, setup.seconds())?;
        let storm = Spec { concurrency: CLIENTS, rate: Some(rate), ..load }.run()?;
        let storm_p99 = storm.ok.as_ref().context("no request succeeded under overload")?.p99;
        let refusals = storm.statuses.get(&429).context("nothing was refused under overload")?;
        progress(&format!(
            "{round}/{ROUNDS}: p99 {p99:.1} ms, under overload {storm_p99:.1} ms; 429 in {:.2} ms; {}",
            refusals.p50,
            storm.trouble().unwrap_or_default()
        ));
        ratios.push(storm_p99 / p99);
        refused.push(refusals.p50);
        let due = (storm.requests + storm.unsent) as f64;
        offered.push(TIMES * storm.requests as f64 / due);
        before.push(p99);
        during.push(storm_p99);
        rates.push(calm.ok_per_s);
        accepted.push(storm.ok_per_s);
    }
    section.hold("p99 of the accepted / p99 at saturation", median(&ratios), "", Target::AtMost(2.0));
    section.hold("median time to a 429", median(&refused), "ms", Target::Below(5.0));
    // Unsent requests are no load: below this the two numbers above would not be meaningful.
    section.hold("load really sent, times saturation", median(&offered), "", Target::AtLeast(TIMES * 0.9));
    section.note("p99 at saturation", median(&before), "ms");
    section.note("p99 of the accepted", median(&during), "ms");
    section.note("successes per second at saturation", median(&rates), "");
    section.note("successes per second under overload", median(&accepted), "");
    Ok(section)
}
