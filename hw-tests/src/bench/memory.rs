//! Resident memory at saturation.

use super::result::{Section, Target};
use super::setup::{Setup, bench_frames, progress};
use crate::frames::Size;
use crate::process::memory;

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let mut section = Section::new(
        "memory",
        "Resident memory (VmHWM, VmRSS) of a new server with every lane busy and its queue full, every body unique.",
    );
    for size in Size::ALL {
        progress(size.name());
        let server = setup.start_weir(&setup.bundle)?;
        let ready = memory(server.daemon.pid())?;
        let mut load = server.load(&bench_frames(size)?, true, setup.seconds())?;
        load.concurrency = server.capacity()?;
        load.run()?;
        let after = memory(server.daemon.pid())?;
        let mb = |bytes: u64| bytes as f64 / 1e6;
        section.hold(format!("{}: peak", size.name()), mb(after.peak), "MB", Target::Below(200.0));
        section.note(format!("{}: at the end", size.name()), mb(after.resident), "MB");
        section.note(format!("{}: when ready", size.name()), mb(ready.resident), "MB");
    }
    Ok(section)
}
