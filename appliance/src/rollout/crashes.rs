//! Processes that die with a version that was promoted: what none of its failures can tell, since nothing is left to count them.
//!
//! While a version is monitored, each process that begins with it is noted in the journal before it loads it, and a process that is
//! stopped clears the count. After [`MAX_CRASHES`] that were not stopped the start loads the version before in its place, and the
//! rollout's task rejects it.

use std::time::Duration;

use cloud_sync::durable::boot_id;
use serde::{Deserialize, Serialize};

use super::RolloutContext;
use super::entry::{Entry, Monitored};

/// Processes that may die with a version before it is rolled back.
const MAX_CRASHES: u32 = 3;

/// Processes that began with a version since one of them was stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starts {
    count: u32,
    /// Where the machine itself went down, its processes did not die of the version.
    boot: String,
}

impl Starts {
    /// The process that promotes the version.
    pub(super) fn first() -> Self {
        Self { count: 1, boot: boot_id() }
    }

    fn with_one_more(&self) -> Self {
        Self { count: self.crashes() + 1, boot: boot_id() }
    }

    /// Processes that have died, as seen by one that begins.
    fn crashes(&self) -> u32 {
        if self.boot == boot_id() { self.count } else { 0 }
    }
}

/// Why the version that serves by the journal is not to be loaded again, if it is not.
pub(super) fn verdict(entry: &Entry, monitor_time: Duration) -> Option<String> {
    let Monitored { time, starts, .. } = entry.monitored.as_ref()?;
    let crashes = starts.crashes();
    (*time < monitor_time && crashes >= MAX_CRASHES)
        .then(|| format!("after it was promoted, {crashes} processes that served it died (were not stopped)"))
}

/// Notes durably that this process begins with the version that is monitored; blocking. Says whether it is not to be loaded again.
pub(super) fn note_start(context: &RolloutContext, model: &str, entry: &Entry) -> bool {
    if entry.serving.is_none() || entry.monitored.is_none() {
        return false;
    }
    if let Some(reason) = verdict(entry, context.settings.rollout.monitor_time) {
        tracing::error!(model, reason, "the version that served is not loaded again");
        return true;
    }
    let noted = context.journal.change(model, |entry| {
        if let Some(monitored) = &mut entry.monitored {
            monitored.starts = monitored.starts.with_one_more();
        }
    });
    if let Err(error) = noted {
        tracing::warn!(%error, "that a process begins with a version that is monitored could not be written down");
    }
    false
}
