//! Repeated kill -9 under load in one data folder: every acknowledged request must be in the outbox.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use serde::Deserialize;

use super::result::{Section, Target};
use super::setup::{Setup, bench_frames, progress};
use crate::daemon::Daemon;
use crate::frames::{Frame, Size};
use crate::load::{Options, Spec, requests};

const KILLS: usize = 20;
/// No kill comes before a first acknowledgement; one that takes longer than this is a failure.
const FIRST: Duration = Duration::from_secs(30);

/// An answer, or a line of the outbox: both name the request.
#[derive(Deserialize)]
struct Named {
    request_id: String,
}

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let dir = tempfile::tempdir()?;
    let frames = bench_frames(Size::Vga)?;
    let mut acknowledged: HashSet<String> = HashSet::new();
    let (mut missing, mut kept) = (HashSet::new(), 0);
    for kill in 1..=KILLS {
        let mut daemon = setup.start_weir_in(&setup.bundle, dir.path())?;
        // At a random time between 100 and 1000 ms after the first acknowledgement.
        let after = Duration::from_millis(fastrand::u64(100..1000));
        acknowledged.extend(crash(&mut daemon, &frames, after)?);
        let outbox = outbox(setup, dir.path())?;
        kept = outbox.len();
        missing.extend(acknowledged.difference(&outbox).cloned());
        progress(&format!("{kill}/{KILLS}: {} acknowledged, {} missing", acknowledged.len(), missing.len()));
    }
    let mut section = Section::new(
        "crash",
        format!(
            "{KILLS} times: start, 8 clients post VGA frames, kill -9, and look for every acknowledged request in the outbox."
        ),
    );
    section.hold("acknowledged and missing", missing.len() as f64, "", Target::AtMost(0.0));
    // With too few acknowledged requests none could be missing.
    section.hold("acknowledged", acknowledged.len() as f64, "", Target::AtLeast((KILLS * 10) as f64));
    section.note("in the outbox at the end", kept as f64, "");
    Ok(section)
}

/// Runs load and kills the server during it; returns the ids of the acknowledged requests.
fn crash(daemon: &mut Daemon, frames: &[Frame], after: Duration) -> anyhow::Result<Vec<String>> {
    let target = daemon.target("/predict");
    let requests = requests(&target, frames, &Options { unique: true, ..Options::default() })?;
    let replies: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let sink = replies.clone();
    let load = Spec {
        duration: Duration::from_secs(120),
        on_reply: Some(Arc::new(move |reply| {
            if (200..300).contains(&reply.status) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(reply.body.clone());
            }
        })),
        ..Spec::new(target, requests)
    };
    let stop = load.stop.clone();
    let running = std::thread::spawn(|| load.run());
    let begun = wait_for_first(&replies);
    std::thread::sleep(after);
    let killed = daemon.kill();
    stop.store(true, Ordering::Relaxed);
    running.join().map_err(|_| anyhow!("the load panicked"))??;
    begun?;
    killed?;
    let replies = replies.lock().unwrap_or_else(PoisonError::into_inner);
    let id = |body: &Vec<u8>| {
        let named: Named = serde_json::from_slice(body).context("an answer without a request_id")?;
        Ok(named.request_id)
    };
    replies.iter().map(id).collect()
}

fn wait_for_first(replies: &Mutex<Vec<Vec<u8>>>) -> anyhow::Result<()> {
    let start = Instant::now();
    while replies.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
        ensure!(start.elapsed() < FIRST, "nothing was acknowledged in {FIRST:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The ids of everything in the outbox.
fn outbox(setup: &Setup, dir: &Path) -> anyhow::Result<HashSet<String>> {
    let mut command = Command::new(setup.weir()?);
    command.args(["outbox", "tail", "--json", "-n", "10000000", "--data-dir"]).arg(dir).current_dir(dir);
    let output = command.output().context("running weir outbox tail")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "weir outbox tail ended with {}: {stderr}", output.status);
    ids(&String::from_utf8_lossy(&output.stdout))
}

fn ids(lines: &str) -> anyhow::Result<HashSet<String>> {
    let id = |line: &str| {
        let named: Named =
            serde_json::from_str(line).with_context(|| format!("an event without a request_id: {line}"))?;
        Ok(named.request_id)
    };
    lines.lines().filter(|line| !line.is_empty()).map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_events_are_read_and_an_event_without_one_is_an_error() {
        let lines = "{\"request_id\":\"a\",\"sequence\":1}\n{\"request_id\":\"b\"}\n\n";
        assert_eq!(ids(lines).unwrap(), HashSet::from(["a".to_owned(), "b".to_owned()]));
        assert!(ids("{\"sequence\":1}\n").is_err());
    }
}
