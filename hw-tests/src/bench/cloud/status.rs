//! Latency of a batch's status while workers use all cores.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

use super::{Servers, api, distinct_frames, upload};
use crate::bench::limit::plan;
use crate::bench::result::{Section, Target, median};
use crate::bench::setup::{Server, Setup, progress};
use crate::frames::Size;
use crate::limit::Engine;
use crate::load::{Report, Request, Spec};
use crate::process::Processes;

const ROUNDS: usize = 3;
/// Requests per second.
const RATE: f64 = 100.0;
const OBJECTS: usize = 300;
/// The warm-up of a round of load.
const WARM: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(60);
const BATCH: &str = "status-bench";

pub(in crate::bench) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let servers = Servers::start(&["kafka", "redis", "s3"]);
    let frames = distinct_frames(Size::Vga, OBJECTS)?;
    let urls = upload(&servers, &frames)?;
    let limit = Engine::load(Some(&setup.bundle))?.measure(&frames, &plan(setup))?;
    let api = servers.weir(setup, "serve")?;
    let workers = [servers.weir(setup, "worker")?, servers.weir(setup, "worker")?];
    // Enough work for longer than the rounds on any machine: it cannot be faster than the limit.
    let seconds = (setup.seconds() + WARM).as_secs_f64() * ROUNDS as f64 + 20.0;
    let images = (limit.images_per_s * seconds) as usize;
    let mut section = Section::new(
        "status",
        format!(
            "`GET /batch/status/:id` {RATE} times per second, while two workers process a batch of {images} VGA images on \
             the same cores; from the intended time to the answer, the client at real-time priority. Medians of {ROUNDS} rounds."
        ),
    );
    api::post_batch(&api, "status-bench-warm", &urls, OBJECTS)?;
    api::wait_finished(&api, "status-bench-warm", TIMEOUT)?;
    let idle = measure(setup, &api, "status-bench-warm")?.ok.context("no answer")?;

    api::post_batch(&api, BATCH, &urls, images)?;
    wait_until_begun(&api)?;
    let processes = workers.iter().map(|worker| ("worker".to_owned(), worker.daemon.pid())).collect();
    let processes = Processes::new(processes);
    let (mut p50, mut p99, mut cores) = (vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        let before = processes.read()?;
        let latency = measure(setup, &api, BATCH)?.ok.context("no answer")?;
        let used = processes.read()?.since(&before);
        cores.push(used.cores());
        progress(&format!("{round}/{ROUNDS}: p50 {:.2} ms, p99 {:.2} ms", latency.p50, latency.p99));
        p50.push(latency.p50);
        p99.push(latency.p99);
    }
    let after = api::batch_status(&mut api.client()?, BATCH)?;
    ensure!(after.status == "processing", "the batch did not last as long as the rounds: {after:?}");
    section.hold("p99", median(&p99), "ms", Target::Below(5.0));
    // With idle cores the number above would not be meaningful.
    let all = plan(setup).threads as f64;
    section.hold("cores that the workers use", median(&cores), "", Target::AtLeast(all * 0.7));
    section.note("p99, the worst round", p99.iter().copied().fold(0.0, f64::max), "ms");
    section.note("p50", median(&p50), "ms");
    section.note("p99, workers idle", idle.p99, "ms");
    section.note("p50, workers idle", idle.p50, "ms");
    Ok(section)
}

fn measure(setup: &Setup, api: &Server, id: &str) -> anyhow::Result<Report> {
    let target = api.daemon.target(&api::status_path(id));
    let requests: Arc<[Request]> = Arc::new([Request::get(&target)]);
    let spec =
        Spec { rate: Some(RATE), warmup: WARM, duration: setup.seconds(), ..Spec::new(target, requests) };
    // The client represents another machine: its wait for a core must not count.
    let report = std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            prefer_this_thread();
            spec.run()
        });
        measuring.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    match report.trouble() {
        Some(trouble) => anyhow::bail!(trouble),
        None => Ok(report),
    }
}

/// Sets real-time priority, which is inherited by the threads that this one starts.
fn prefer_this_thread() {
    let fifo = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    if let Err(error) = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, fifo) {
        progress(&format!("the client has no priority, so its own waits count too: {error:?}"));
    }
}

fn wait_until_begun(api: &Server) -> anyhow::Result<()> {
    let (mut client, start) = (api.client()?, Instant::now());
    while api::batch_status(&mut client, BATCH)?.completed == 0 {
        ensure!(start.elapsed() < TIMEOUT, "no image of the batch was done in {TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
