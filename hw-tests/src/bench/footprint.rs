//! What a server process needs: time until the first prediction, and resident memory at saturation.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::result::{Section, Target, median};
use super::setup::{Setup, bench_frames, progress};
use crate::daemon::{Daemon, free_port};
use crate::frames::{Frame, Size, render};
use crate::load::Client;
use crate::process;

const STARTS: usize = 10;
/// How often a request is tried until one succeeds.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
const GIVE_UP: Duration = Duration::from_secs(60);

/// Time from the start of the process to the first prediction.
pub(super) fn startup(setup: &Setup) -> anyhow::Result<Section> {
    let frames = render(Size::Vga, 1)?;
    let mut section = Section::new(
        "startup",
        format!(
            "From the start of the process to its first 200 for a VGA frame, {STARTS} starts, each with a new data folder."
        ),
    );
    let starts: Vec<f64> = (0..STARTS).map(|_| start(setup, &frames[0])).collect::<Result<_, _>>()?;
    section.hold("median", median(&starts), "ms", Target::Below(500.0));
    section.hold("longest", starts.iter().copied().fold(0.0, f64::max), "ms", Target::Below(500.0));
    Ok(section)
}

/// One start, in milliseconds.
fn start(setup: &Setup, frame: &Frame) -> anyhow::Result<f64> {
    let (dir, port) = (tempfile::tempdir()?, free_port()?);
    let command = setup.weir_command(&setup.bundle, port, dir.path())?;
    let start = Instant::now();
    let mut daemon = Daemon::start(command, port, &dir.path().join("weir.log"))?;
    let mut client = Client::new(daemon.target("/predict"), Duration::from_secs(5))?;
    // Until the first success: before, there is no connection or a 503.
    while !client.post(frame).is_ok_and(|reply| reply.status == 200) {
        daemon.check_running()?;
        ensure!(
            start.elapsed() < GIVE_UP,
            "no prediction in {GIVE_UP:?}; its output ends:\n{}",
            daemon.output()
        );
        std::thread::sleep(POLL_INTERVAL);
    }
    let elapsed = start.elapsed();
    daemon.stop()?;
    Ok(elapsed.as_secs_f64() * 1000.0)
}

/// Resident memory at saturation.
pub(super) fn memory(setup: &Setup) -> anyhow::Result<Section> {
    let mut section = Section::new(
        "memory",
        "Resident memory (VmHWM, VmRSS) of a new server with every lane busy and its queue full, every body unique.",
    );
    for size in Size::ALL {
        progress(size.name());
        let server = setup.start_weir(&setup.bundle)?;
        let ready = process::memory(server.daemon.pid())?;
        let mut load = server.load(&bench_frames(size)?, true, setup.seconds())?;
        load.concurrency = server.capacity()?;
        load.run()?;
        let after = process::memory(server.daemon.pid())?;
        let mb = |bytes: u64| bytes as f64 / 1e6;
        section.hold(format!("{}: peak", size.name()), mb(after.peak), "MB", Target::Below(200.0));
        section.note(format!("{}: at the end", size.name()), mb(after.resident), "MB");
        section.note(format!("{}: when ready", size.name()), mb(ready.resident), "MB");
    }
    Ok(section)
}
