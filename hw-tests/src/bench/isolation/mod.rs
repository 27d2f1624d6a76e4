//! Latency of a client that posts frames at a steady rate while another one misbehaves.

mod misbehave;

use std::time::Duration;

use anyhow::Context;

use super::result::{Section, Target};
use super::setup::{Server, Setup, bench_frames, progress};
use crate::frames::{Frame, Size};
use crate::load::{Report, Spec};
use misbehave::{Misbehaviour, Tarpit};

/// Requests per second of the well-behaved client: about a fifth of the capacity of two cores, so that its latency without
/// the other client is that of an idle server.
const RATE: f64 = 40.0;
/// Its connections.
const CONNECTIONS: usize = 16;
/// How long the misbehaving client runs before the measurement begins.
const ESTABLISH: Duration = Duration::from_secs(2);
/// Largest ratio of the latency with and without the other client.
const MAX_RATIO: f64 = 3.0;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let frames = bench_frames(Size::Vga)?;
    let mut section = Section::new(
        "isolation",
        format!(
            "One client on 127.0.0.1 posts unique VGA frames, {RATE} per second in an open loop over {CONNECTIONS} connections. \
             Another, on 127.0.0.66, misbehaves. p99 of the first client while the other misbehaves, over its p99 right before, \
             with a new server for each row."
        ),
    );
    let tarpit = Tarpit::start()?;
    for kind in Misbehaviour::ALL {
        // Fetches from loopback are refused unless the network is allowed; here it represents a slow camera.
        let server =
            setup.start_with("serve", &[("WEIR__FETCH__ALLOW_NETWORKS", "127.0.0.0/8".to_owned())])?;
        let alone = measure(&server, &frames, setup.seconds())?;
        let client = misbehave::start(kind, server.load(&frames, true, setup.seconds())?, &tarpit)?;
        std::thread::sleep(ESTABLISH);
        let beside = measure(&server, &frames, setup.seconds())?;
        let sent = client.stop()?;
        let p99 = |report: &Report| report.ok.as_ref().map(|ok| ok.p99).context("no request succeeded");
        let (before, during) = (p99(&alone)?, p99(&beside)?);
        let failed = unsuccessful(&beside);
        progress(&format!(
            "{kind}: p99 {before:.1} ms alone, {during:.1} ms beside; {failed} failed; the other client: {sent}; {}",
            beside.trouble().unwrap_or_default()
        ));
        section.hold(format!("{kind}: p99 / p99 alone"), during / before, "", Target::AtMost(MAX_RATIO));
        section.hold(format!("{kind}: requests that failed"), failed as f64, "", Target::AtMost(0.0));
        section.note(format!("{kind}: p99"), during, "ms");
        // Without attempts of the other client the rows above would not be meaningful.
        section.hold(
            format!("{kind}: attempts of the other client"),
            sent.attempts as f64,
            "",
            Target::AtLeast(1.0),
        );
    }
    Ok(section)
}

fn measure(server: &Server, frames: &[Frame], duration: Duration) -> anyhow::Result<Report> {
    let load = server.load(frames, true, duration)?;
    Spec { concurrency: CONNECTIONS, rate: Some(RATE), ..load }.run()
}

/// Requests without a 2xx response.
fn unsuccessful(report: &Report) -> u64 {
    let refused: u64 = report
        .statuses
        .iter()
        .filter(|(status, _)| !(200..300).contains(*status))
        .map(|(_, latency)| latency.count)
        .sum();
    refused + report.failures.values().map(|failure| failure.count).sum::<u64>()
}
