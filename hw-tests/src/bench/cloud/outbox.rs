//! What durability costs: events a second of many appenders at once, and its part of the time of a prediction.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use cloud_sync::outbox::{Outbox, OutboxConfig};

use super::events::prediction;
use super::metrics::Metrics;
use crate::bench::result::{Section, Target, median};
use crate::bench::setup::{Server, Setup, bench_frames, progress};
use crate::frames::{Frame, Size};
use crate::load::Spec;

/// Appends that wait for the disk at the same time: as many requests as a busy server has in hand.
const APPENDERS: u64 = 128;
/// Requests a second.
const RATE: f64 = 100.0;
const PAIRS: usize = 5;

pub(in crate::bench) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let mut section = Section::new(
        "outbox",
        format!(
            "In-process: {APPENDERS} appenders of prediction events of 700 bytes, each waiting until its event is fsynced; \
             median of {PAIRS} runs. To `/predict`: VGA frames, every body unique, {RATE} a second, on a server that fsyncs \
             and on one that leaves it to the system, in turn; medians of {PAIRS} pairs."
        ),
    );
    let rates: Vec<f64> =
        (0..PAIRS).map(|_| append(setup.seconds().min(Duration::from_secs(3)))).collect::<Result<_, _>>()?;
    section.hold("events a second, durable", median(&rates), "", Target::AtLeast(20_000.0));
    section.note("the slowest run", rates.iter().copied().fold(f64::INFINITY, f64::min), "");

    let durability = |word: &str| vec![("WEIR__OUTBOX__DURABILITY", word.to_owned())];
    let durable = setup.start_with("serve", &durability("fsync"))?;
    let buffered = setup.start_with("serve", &durability("os_buffered"))?;
    let frames = bench_frames(Size::Vga)?;
    let (mut costs, mut with, mut without) = (vec![], vec![], vec![]);
    for pair in 1..=PAIRS {
        let (slow, quick) = (p50(setup, &durable, &frames)?, p50(setup, &buffered, &frames)?);
        progress(&format!("{pair}/{PAIRS}: p50 {slow:.2} ms fsynced, {quick:.2} ms not"));
        costs.push(slow - quick);
        with.push(slow);
        without.push(quick);
    }
    let stage = Metrics::of(&mut durable.client()?)?
        .median_bucket("weir_stage_duration_seconds", "stage=\"outbox\"")
        .context("the outbox stage")?;
    section.hold("p50 of /predict, fsynced less not", median(&costs), "ms", Target::Below(1.0));
    section.hold("outbox stage, p50 at most", stage * 1000.0, "ms", Target::Below(1.0));
    section.note("p50 of /predict, fsynced", median(&with), "ms");
    section.note("p50 of /predict, not fsynced", median(&without), "ms");
    Ok(section)
}

/// Durable events a second.
fn append(time: Duration) -> anyhow::Result<f64> {
    let dir = tempfile::tempdir()?;
    let outbox = open(dir.path())?;
    // Made before, so that the time is the outbox's.
    let events: Vec<Vec<u8>> = (0..APPENDERS).map(prediction).collect::<Result<_, _>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (start, mut appended) = (Instant::now(), 0);
    runtime.block_on(async {
        let appenders: Vec<_> = events
            .into_iter()
            .map(|event| {
                let outbox = Arc::clone(&outbox);
                tokio::spawn(async move {
                    let mut count = 0_u64;
                    while start.elapsed() < time {
                        outbox.append(event.clone()).await?;
                        count += 1;
                    }
                    anyhow::Ok(count)
                })
            })
            .collect();
        for appender in appenders {
            appended += appender.await.context("an appender ended badly")??;
        }
        anyhow::Ok(())
    })?;
    Ok(appended as f64 / start.elapsed().as_secs_f64())
}

fn open(dir: &Path) -> anyhow::Result<Arc<Outbox>> {
    Ok(Arc::new(Outbox::open(OutboxConfig::new(dir))?.0))
}

/// The median latency, in milliseconds.
fn p50(setup: &Setup, server: &Server, frames: &[Frame]) -> anyhow::Result<f64> {
    let load = Spec { rate: Some(RATE), ..server.load(frames, true, setup.seconds())? };
    let report = load.run()?;
    if let Some(trouble) = report.trouble() {
        anyhow::bail!(trouble);
    }
    Ok(report.ok.context("no request succeeded")?.p50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_are_counted_over_the_time() {
        let time = Duration::from_millis(300);
        let start = Instant::now();
        let rate = append(time).unwrap();
        let elapsed = start.elapsed();
        // Every appender appends at least once, however slow the disk is.
        assert!(elapsed >= time && rate * elapsed.as_secs_f64() >= APPENDERS as f64, "{rate} in {elapsed:?}");
    }
}
