//! Results into the outbox, each once, also when a crash has cut an earlier try short.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use serde::Deserialize;

use super::file::Mark;
use crate::error::{Link, SyncError, SyncResult};
use crate::outbox::{Append, BulkRoom, Outbox, OutboxError, Reader};
use crate::queue::ResultRecord;

/// Appends on their way at once: fewer than the outbox takes, so that predictions find room beside them.
const WINDOW: usize = 256;
/// How long a full window of the outbox is waited for.
const BUSY: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// The field that tells one event from another; the rest is not looked at.
#[derive(Deserialize)]
struct Identified {
    id: String,
}

fn id_of(payload: &[u8]) -> Option<String> {
    serde_json::from_slice::<Identified>(payload).ok().map(|event| event.id)
}

/// Refuses, before anything is published, what could not be published or not be found again.
pub(super) fn check(outbox: &Outbox, results: &[ResultRecord]) -> SyncResult<()> {
    let max = outbox.max_payload();
    for ResultRecord { id, payload, .. } in results {
        let refused =
            |why: String| Err(SyncError::permanent(Link::Disk, format!("result {id:?} {why}")).of_record(id));
        if payload.len() > max {
            return refused(format!("has {} bytes, over the outbox's bound of {max}", payload.len()));
        }
        match id_of(payload) {
            Some(found) if found == *id => {}
            Some(found) => return refused(format!("has the id {found:?} in its JSON")),
            None => return refused("is no JSON with a field \"id\"".into()),
        }
    }
    Ok(())
}

/// Room in the outbox for `results`. Those of a job that has a mark were given room before.
pub(super) fn room(outbox: &Outbox, marked: Option<Mark>, results: &[ResultRecord]) -> SyncResult<BulkRoom> {
    let lengths = results.iter().map(|result| result.payload.len());
    if marked.is_some() {
        return Ok(outbox.bulk_room_for_rest(lengths));
    }
    outbox.bulk_room(lengths).map_err(|error| {
        SyncError::transient(Link::Disk, "the results wait for room in the outbox").because(error)
    })
}

/// Whether nothing of a settlement has been done, for results that are still to be sent have the room.
pub(super) fn waits_for_room(error: &SyncError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<OutboxError>());
    matches!(source, Some(OutboxError::BulkBound { .. }))
}

/// Appends those of `results` that are not in the outbox yet, and waits until they are durable.
pub(super) fn publish(
    outbox: &Outbox,
    mark: Mark,
    results: Vec<ResultRecord>,
    mut room: BulkRoom,
) -> SyncResult<()> {
    let mut seen = match mark {
        Mark::Fresh => HashSet::new(),
        Mark::Behind(last) => published_behind(outbox, last, &results)?,
        Mark::Done => return Ok(()),
    };
    let missing: Vec<_> = results.into_iter().filter(|result| seen.insert(result.id.clone())).collect();
    let start = Instant::now();
    let mut rest = &missing[..];
    while !rest.is_empty() {
        let (window, _) = rest.split_at(rest.len().min(WINDOW));
        let taken = append(outbox, window, &mut room)?;
        if taken == 0 && start.elapsed() > BUSY {
            let text = format!("the outbox had no room for result {:?} for {BUSY:?}", rest[0].id);
            return Err(SyncError::transient(Link::Disk, text));
        }
        if taken < window.len() {
            thread::sleep(BUSY_PAUSE);
        }
        rest = &rest[taken..];
    }
    Ok(())
}

/// Appends in order, up to the first that finds too many waiting, and returns how many were taken.
fn append(outbox: &Outbox, results: &[ResultRecord], room: &mut BulkRoom) -> SyncResult<usize> {
    let mut taken = Vec::with_capacity(results.len());
    for result in results {
        let mut append = outbox.append_bulk(Bytes::clone(&result.payload).into(), room);
        match (&mut append).now_or_never() {
            Some(Err(OutboxError::Busy { .. })) => break,
            Some(answer) => taken.push(Err(answer)),
            None => taken.push(Ok(append)),
        }
    }
    // All are waited for, also behind one that failed: afterwards none is on its way any more.
    let answers: Vec<_> =
        taken.into_iter().map(|append| append.map_or_else(|answer| answer, Append::wait)).collect();
    for (result, answer) in results.iter().zip(&answers) {
        if let Err(error) = answer {
            let text = format!("the outbox did not take result {:?}", result.id);
            return Err(SyncError::transient(Link::Disk, text).because(error.clone()));
        }
    }
    Ok(answers.len())
}

/// The ids of `results` that are in the outbox behind the sequence `last`.
fn published_behind(outbox: &Outbox, last: u64, results: &[ResultRecord]) -> SyncResult<HashSet<String>> {
    let wanted: HashSet<_> = results.iter().map(|result| result.id.as_str()).collect();
    let newest = outbox.last_sequence();
    let failed = |error: OutboxError| {
        SyncError::transient(Link::Disk, "cannot look for results in the outbox").because(error)
    };
    let mut reader = Reader::open(outbox.dir()).map_err(failed)?;
    // A mark from the future is of an outbox that was deleted since: its numbers have begun anew.
    reader.seek(if last > newest { 0 } else { last + 1 });
    let mut found = HashSet::new();
    while let Some(event) = reader.try_next().map_err(failed)? {
        // What is behind is not acknowledged, so it may yet be gone.
        if event.sequence > newest {
            break;
        }
        if let Some(id) = id_of(&event.payload).filter(|id| wanted.contains(id.as_str())) {
            found.insert(id);
        }
    }
    Ok(found)
}
