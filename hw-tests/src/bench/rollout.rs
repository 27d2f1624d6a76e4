//! Swaps of the model under full load: no request fails, and latency hardly increases.

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
const POLL_MS: f64 = 200.0;
const POLL: Duration = Duration::from_millis(POLL_MS as u64);
/// How long one swap may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time of all swaps together.
const RUN_TIMEOUT: Duration = Duration::from_secs(300);
/// Pause between two swaps.
const REST: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize)]
struct Models {
    models: Vec<Model>,
}

#[derive(Debug, Deserialize)]
struct Model {
    serving: Option<String>,
    candidate: Option<String>,
}

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let registry = tempfile::tempdir()?;
    for version in 1..=SWAPS + 1 {
        publish(&setup.bundle, registry.path(), &version.to_string())?;
    }
    follow(registry.path(), "1")?;
    let variables = [
        ("WEIR__REGISTRY__DIR", registry.path().display().to_string()),
        ("WEIR__REGISTRY__POLL_INTERVAL", format!("{}ms", POLL.as_millis())),
        ("WEIR__MODEL__FOLLOW", "fish@champion".to_owned()),
        ("WEIR__ROLLOUT__KEEP_PREVIOUS_LOADED", "0s".to_owned()),
    ];
    let server = setup.start_with("serve", &variables)?;
    wait_for(&server, "fish/1")?;
    let frames = bench_frames(Size::Vga)?;
    let mut section = Section::new(
        "rollout",
        format!(
            "{SWAPS} new versions in a directory registry, one after the other, while 8 clients saturate the server (VGA \
             frames, every body unique), against the same load before. A swap is download, verification, load beside the \
             running version, golden cases and change-over; the registry is polled every {} ms.",
            POLL.as_millis()
        ),
    );
    let before = server.load(&frames, true, setup.seconds() * BEFORE)?.run()?;
    ensure!(before.trouble().is_none(), "before the swaps: {}", before.trouble().unwrap_or_default());
    let resident = memory(server.daemon.pid())?.resident;
    let load = Spec { warmup: Duration::ZERO, ..server.load(&frames, true, RUN_TIMEOUT)? };
    let stop = load.stop.clone();
    let storm = std::thread::spawn(move || load.run());
    let swapped = swap(&server, registry.path());
    stop.store(true, Ordering::Relaxed);
    let during = storm.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
    let swapped = swapped?;
    let mut times: Vec<f64> = swapped.iter().map(|swap| swap.whole).collect();
    let noticed = swapped.iter().map(|swap| swap.noticed).fold(0.0, f64::max);
    let failed = during.requests - during.successes;
    let p99 =
        |report: &crate::load::Report| report.ok.as_ref().map(|ok| ok.p99).context("no request succeeded");
    let (calm, swapping) = (p99(&before)?, p99(&during)?);
    times.sort_by(f64::total_cmp);
    // Requests in flight at the end of the load have no response.
    section.hold("requests that failed", failed.saturating_sub(8) as f64, "", Target::AtMost(0.0));
    section.hold("p99 while swapping / p99 before", swapping / calm, "", Target::AtMost(1.5));
    // The rest of a swap is download, verification, load and golden cases.
    section.hold(
        "alias changed to rollout begun, longest / poll interval",
        noticed / POLL_MS,
        "",
        Target::AtMost(2.0),
    );
    section.note("p99 before", calm, "ms");
    section.note("p99 while swapping", swapping, "ms");
    section.note("requests per second before", before.ok_per_s, "");
    section.note("requests per second while swapping", during.ok_per_s, "");
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

/// Times of a swap since the change of the alias, in milliseconds.
struct Swap {
    /// Until the rollout had begun.
    noticed: f64,
    /// Until the version served.
    whole: f64,
}

/// Swaps from each version to the next.
fn swap(server: &Server, registry: &Path) -> anyhow::Result<Vec<Swap>> {
    let mut times = Vec::new();
    for swap in 0..SWAPS {
        let version = (swap + 2).to_string();
        let began = Instant::now();
        follow(registry, &version)?;
        let noticed = wait_for(server, &format!("fish/{version}"))?;
        times.push(Swap { noticed, whole: began.elapsed().as_secs_f64() * 1e3 });
        progress(&format!("{}/{SWAPS}: {:.0} ms", swap + 1, began.elapsed().as_secs_f64() * 1e3));
        std::thread::sleep(REST);
    }
    Ok(times)
}

/// Waits until a version serves. Returns after how many milliseconds its rollout was seen.
fn wait_for(server: &Server, version: &str) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut noticed = None;
    loop {
        let reply = server.client()?.get("/models")?;
        let found: Models = serde_json::from_slice(&reply.body).context("GET /models")?;
        let now = began.elapsed().as_secs_f64() * 1e3;
        let model = found.models.first().context("GET /models shows no model")?;
        let serves = model.serving.as_deref() == Some(version);
        if serves || model.candidate.as_deref() == Some(version) {
            noticed.get_or_insert(now);
        }
        if serves {
            return Ok(noticed.unwrap_or(now));
        }
        ensure!(
            began.elapsed() < TIMEOUT,
            "{version} does not serve: {}",
            String::from_utf8_lossy(&reply.body)
        );
        // Rarely enough that the polling has no significant cost.
        std::thread::sleep(Duration::from_millis(20));
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

/// Points the alias to a version.
fn follow(registry: &Path, version: &str) -> anyhow::Result<()> {
    let dir = registry.join("fish/aliases");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("champion.new"), version)?;
    fs::rename(dir.join("champion.new"), dir.join("champion"))?;
    Ok(())
}
