//! The cost of durability: events per second from many concurrent appenders, and its share of a prediction's latency.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use cloud_sync::event::{Event, EventBody, ImageRef, ModelRef, Prediction, Score};
use cloud_sync::outbox::{Durability, Outbox, OutboxConfig};

use super::api::Metrics;
use crate::bench::result::{Section, Target, median};
use crate::bench::setup::{Server, Setup, bench_frames, progress};
use crate::frames::{Frame, Size};
use crate::load::Spec;

/// Concurrent appends: as many as a busy server has requests in progress.
const APPENDERS: u64 = 128;
/// Requests per second.
const RATE: f64 = 100.0;
const PAIRS: usize = 5;
const CAMERAS: u64 = 16;
/// Concurrent appends while filling, below the limit of an outbox.
const AT_ONCE: usize = 2000;
const LABELS: [&str; 5] = ["anemone_fish", "rock_beauty", "lionfish", "puffer", "not_fish"];

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
    section.hold("events per second, durable", median(&rates), "", Target::AtLeast(20_000.0));
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

/// Durable events per second.
fn append(time: Duration) -> anyhow::Result<f64> {
    let dir = tempfile::tempdir()?;
    let outbox = open(dir.path())?;
    // Created before, so that only the outbox is measured.
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

/// Prediction number `number` as JSON.
fn prediction(number: u64) -> anyhow::Result<Vec<u8>> {
    let score =
        |place: usize| Score { label: LABELS[place].to_owned(), score: 0.93 / (1 << (3 * place)) as f32 };
    let body = EventBody::Prediction(Prediction {
        request_id: format!("01JD4Z0000{number:016}"),
        camera: Some(format!("dock-{}", number % CAMERAS)),
        model: ModelRef { name: "fish".to_owned(), version: "1".to_owned(), digest: digest(0) },
        image: ImageRef {
            digest: digest(number + 1),
            format: "jpeg".to_owned(),
            bytes: 101_233 + number % 1000,
            width: 640,
            height: 480,
        },
        species: LABELS[0].to_owned(),
        confidence: 0.93,
        predictions: (0..LABELS.len()).map(score).collect(),
        cached: false,
    });
    Ok(Event::new("dock-3", body).to_json()?)
}

/// 64 hexadecimal digits that look random, like those of a real digest, so that they are not more compressible.
fn digest(number: u64) -> String {
    let mut random = fastrand::Rng::with_seed(number);
    format!("{:016x}{:016x}{:016x}{:016x}", random.u64(..), random.u64(..), random.u64(..), random.u64(..))
}

/// Fills a new outbox; returns the mean length of an event. The events are only input of the measurement and need not
/// survive a power cut.
pub(super) fn fill(dir: &Path, max_bytes: u64, count: u64) -> anyhow::Result<f64> {
    let config = OutboxConfig { durability: Durability::OsBuffered, max_bytes, ..OutboxConfig::new(dir) };
    let (outbox, _) = Outbox::open(config)?;
    let (mut appends, mut bytes) = (Vec::with_capacity(AT_ONCE), 0);
    for number in 0..count {
        let event = prediction(number)?;
        bytes += event.len();
        appends.push(outbox.append(event));
        if appends.len() == AT_ONCE || number + 1 == count {
            for append in appends.drain(..) {
                append.wait()?;
            }
        }
    }
    Ok(bytes as f64 / count as f64)
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

    #[test]
    fn predictions_are_events_of_a_real_size_and_no_two_are_alike() {
        let (one, other) = (prediction(1).unwrap(), prediction(2).unwrap());
        assert!((500..900).contains(&one.len()), "{}", one.len());
        let events = [one, other].map(|json| Event::from_json(&json).unwrap());
        assert_eq!(events[0].body.kind(), "prediction");
        let digests = events.map(|event| match event.body {
            EventBody::Prediction(prediction) => prediction.image.digest,
            other => panic!("{other:?}"),
        });
        assert!(digests[0] != digests[1] && digests.iter().all(|digest| digest.len() == 64));
    }

    #[test]
    fn an_outbox_is_filled() {
        let dir = tempfile::tempdir().unwrap();
        assert!(fill(dir.path(), 64 << 20, 4500).unwrap() > 500.0);
        let (outbox, _) = Outbox::open(OutboxConfig::new(dir.path())).unwrap();
        assert_eq!(outbox.stats().backlog, 4500);
    }
}
