//! The in-process loop for every size of frame, for the record.

use std::time::Duration;

use super::result::Section;
use super::setup::{Setup, bench_frames, progress};
use crate::frames::Size;
use crate::limit::{Engine, Plan};

/// Every core, over the time of one measurement.
pub(super) fn plan(setup: &Setup) -> Plan {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Plan { threads, warmup: Duration::from_millis(500), duration: setup.seconds() }
}

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let (engine, plan) = (Engine::load(Some(&setup.bundle))?, plan(setup));
    let method = format!(
        "Decode, preprocess and infer in one process without HTTP, {} threads, {}.",
        plan.threads,
        engine.describe()
    );
    let mut section = Section::new("limit", method);
    for size in Size::ALL {
        progress(size.name());
        let limit = engine.measure(&bench_frames(size)?, &plan)?;
        section.note(format!("{}: images a second", size.name()), limit.images_per_s, "");
        section.note(format!("{}: CPU time an image", size.name()), limit.cpu_ms, "ms");
        section.note(format!("{}: decode", size.name()), limit.decode_ms, "ms");
        section.note(format!("{}: preprocess", size.name()), limit.preprocess_ms, "ms");
        section.note(format!("{}: infer", size.name()), limit.infer_ms, "ms");
    }
    Ok(section)
}
