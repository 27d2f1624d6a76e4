//! The status of a batch, from the fields of its hash.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::state::{BatchOutcome, BatchPhase, BatchSpec, BatchStatus, WorkStarts};

/// The fields of a batch, in the order of [`super::scripts::FIELDS`].
pub(super) type Fields = Vec<Option<String>>;

/// A batch from its fields; the error says which one is wrong.
pub(super) fn status(fields: Fields) -> Result<BatchStatus, String> {
    let mut fields = fields.into_iter();
    let mut next = || fields.next().flatten();
    let mut text = |name: &str| next().ok_or_else(|| format!("{name} is missing"));
    let number = |name: &str, text: String| text.parse::<u64>().map_err(|_| format!("{name} is {text:?}"));
    let small = |name: &str, text: String| text.parse::<u32>().map_err(|_| format!("{name} is {text:?}"));
    let time = |name: &str, text: String| {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(number(name, text)?));
        at.ok_or_else(|| format!("{name} is no time"))
    };
    let spec = BatchSpec {
        request_id: text("request_id")?,
        total: number("total", text("total")?)?,
        chunks: small("chunks", text("chunks")?)?,
        digest: text("digest")?,
    };
    let phase = text("phase")?;
    let phase = parse_phase(&phase).ok_or_else(|| format!("phase is {phase:?}"))?;
    Ok(BatchStatus {
        spec,
        phase,
        submitted: text("submitted")? == "1",
        completed: number("completed", text("completed")?)?,
        failed: number("failed", text("failed")?)?,
        chunks_done: small("done", text("done")?)?,
        created: time("created", text("created")?)?,
        updated: time("updated", text("updated")?)?,
        outcome: next()
            .map(|text| serde_json::from_str(&text).map_err(|error| format!("outcome: {error}")))
            .transpose()?
            // The batch may have been cancelled while its outcome was made.
            .map(|outcome: BatchOutcome| BatchOutcome { phase, ..outcome }),
    })
}

pub(super) fn phase_name(phase: BatchPhase) -> &'static str {
    match phase {
        BatchPhase::Queued => "queued",
        BatchPhase::Processing => "processing",
        BatchPhase::Completed => "completed",
        BatchPhase::Failed => "failed",
        BatchPhase::Cancelled => "cancelled",
    }
}

pub(super) fn parse_phase(name: &str) -> Option<BatchPhase> {
    let all = [
        BatchPhase::Queued,
        BatchPhase::Processing,
        BatchPhase::Completed,
        BatchPhase::Failed,
        BatchPhase::Cancelled,
    ];
    all.into_iter().find(|phase| phase_name(*phase) == name)
}

/// The starts of the work on a message from the fields of their hash.
pub(super) fn work_starts(fields: &BTreeMap<String, u64>) -> WorkStarts {
    let narrow = |count: &u64| u32::try_from(*count).unwrap_or(u32::MAX);
    let ended = fields.iter().filter_map(|(name, count)| {
        let image = name.strip_prefix("e:")?.parse().ok()?;
        Some((image, narrow(count)))
    });
    let starts = fields.get("starts").map_or(0, narrow);
    let (image, step) = (fields.get("image").copied(), fields.get("step").copied());
    WorkStarts { starts, image, step, ended_at: ended.collect() }.so_far()
}
