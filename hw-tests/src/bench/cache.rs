//! Latency of an answer that is already known.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};

use super::result::{Section, Target};
use super::setup::{Prediction, Setup};
use crate::frames::{Size, render};
use crate::load::Spec;

const RATE: f64 = 100.0;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let mut section = Section::new(
        "cache",
        format!(
            "One 1080p frame, known to the server, posted {RATE} times a second; from its intended time to the answer."
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
