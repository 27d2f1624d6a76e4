//! Swaps of the model under full load: nothing fails, and hardly anybody waits longer.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::result::{Section, Target, median};
use super::setup::{Server, Setup, bench_frames, progress};
use crate::frames::Size;
use crate::load::Spec;
use crate::process::memory;

const SWAPS: usize = 20;
/// The measurement before the swaps, times the seconds of a measurement.
const BEFORE: u32 = 4;
const POLL: Duration = Duration::from_millis(200);
/// How long one swap may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time of all swaps together.
const LONGEST: Duration = Duration::from_secs(300);
/// Between a version that serves and the next.
const REST: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize)]
struct Models {
    models: Vec<Model>,
}

#[derive(Debug, Deserialize)]
struct Model {
    serving: Option<String>,
}

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let registry = tempfile::tempdir()?;
    for version in ["1", "2"] {
        publish(&setup.bundle, registry.path(), version)?;
    }
    follow(registry.path(), "1")?;
    let variables = [
        ("WEIR__REGISTRY__DIR", registry.path().display().to_string()),
        ("WEIR__REGISTRY__POLL", format!("{}ms", POLL.as_millis())),
        ("WEIR__MODEL__FOLLOW", "fish@champion".to_owned()),
        ("WEIR__ROLLOUT__STANDBY", "0s".to_owned()),
    ];
    let server = setup.start_with("serve", &variables)?;
    wait_for(&server, "fish/1")?;
    let frames = bench_frames(Size::Vga)?;
    let mut section = Section::new(
        "rollout",
        format!(
            "{SWAPS} swaps between two versions in a directory registry, one after the other, while 8 clients saturate \
             the server (VGA frames, every body unique), against the same load before. A swap is download, verification, \
             load beside the running version, golden cases and change-over; the registry is asked every {} ms.",
            POLL.as_millis()
        ),
    );
    let before = server.load(&frames, true, setup.seconds() * BEFORE)?.run()?;
    ensure!(before.trouble().is_none(), "before the swaps: {}", before.trouble().unwrap_or_default());
    let resident = memory(server.daemon.pid())?.resident;
    let load = Spec { warmup: Duration::ZERO, ..server.load(&frames, true, LONGEST)? };
    let stop = load.stop.clone();
    let storm = std::thread::spawn(move || load.run());
    let swapped = swap(&server, registry.path());
    stop.store(true, Ordering::Relaxed);
    let during = storm.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
    let mut times = swapped?;
    let failed = during.requests - during.successes;
    let p99 =
        |report: &crate::load::Report| report.ok.as_ref().map(|ok| ok.p99).context("no request succeeded");
    let (calm, swapping) = (p99(&before)?, p99(&during)?);
    times.sort_by(f64::total_cmp);
    // Those that were on their way when the load ended have no answer.
    section.hold("requests that failed", failed.saturating_sub(8) as f64, "", Target::AtMost(0.0));
    section.hold("p99 while swapping / p99 before", swapping / calm, "", Target::AtMost(1.5));
    section.note("p99 before", calm, "ms");
    section.note("p99 while swapping", swapping, "ms");
    section.note("requests a second before", before.ok_per_s, "");
    section.note("requests a second while swapping", during.ok_per_s, "");
    section.note("alias changed to version serving, median", median(&times), "ms");
    section.note(
        "alias changed to version serving, longest",
        times.last().copied().unwrap_or_default(),
        "ms",
    );
    let after = memory(server.daemon.pid())?.resident;
    section.note("resident memory before", resident as f64 / 1e6, "MB");
    section.note("resident memory after", after as f64 / 1e6, "MB");
    Ok(section)
}

/// Swaps to and fro. Returns how long each took, in milliseconds.
fn swap(server: &Server, registry: &Path) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for swap in 0..SWAPS {
        let version = if swap % 2 == 0 { "2" } else { "1" };
        let began = Instant::now();
        follow(registry, version)?;
        wait_for(server, &format!("fish/{version}"))?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        progress(&format!("{}/{SWAPS}: {:.0} ms", swap + 1, began.elapsed().as_secs_f64() * 1e3));
        std::thread::sleep(REST);
    }
    Ok(times)
}

fn wait_for(server: &Server, version: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let reply = server.client()?.get("/models")?;
        let found: Models = serde_json::from_slice(&reply.body).context("GET /models")?;
        if found.models.first().and_then(|model| model.serving.as_deref()) == Some(version) {
            return Ok(());
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "{version} does not serve: {}",
            String::from_utf8_lossy(&reply.body)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A copy of the bundle as a version of the model `fish`.
fn publish(bundle: &Path, registry: &Path, version: &str) -> anyhow::Result<()> {
    let to = registry.join("fish").join(version);
    copy(bundle, &to)?;
    let manifest = to.join("bundle.toml");
    let text = fs::read_to_string(&manifest)?;
    let line = text.lines().find(|line| line.starts_with("version")).context("bundle.toml has no version")?;
    fs::write(&manifest, text.replacen(line, &format!("version = \"bench-{version}\""), 1))?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("no bundle at {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Has the alias name a version.
fn follow(registry: &Path, version: &str) -> anyhow::Result<()> {
    let dir = registry.join("fish/aliases");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("champion.new"), version)?;
    fs::rename(dir.join("champion.new"), dir.join("champion"))?;
    Ok(())
}
