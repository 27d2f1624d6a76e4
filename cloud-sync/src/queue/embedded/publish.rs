//! Appends results to the outbox, each once, even when a crash has interrupted an earlier attempt.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use serde::Deserialize;

use super::file::Mark;
use crate::error::{Link, SyncError, SyncResult};
use crate::outbox::{Append, BulkRoom, BulkTicket, Outbox, OutboxError, Reader};
use crate::queue::ResultRecord;

/// Maximum appends in flight: fewer than the outbox accepts, so that predictions find space beside them.
const MAX_IN_FLIGHT: usize = 256;
/// How long to wait while the outbox's pending appends are at their limit.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// The field that identifies an event; the others are ignored.
#[derive(Deserialize)]
struct Identified {
    id: String,
}

fn id_of(payload: &[u8]) -> Option<String> {
    serde_json::from_slice::<Identified>(payload).ok().map(|event| event.id)
}

/// Refuses, before anything is published, results that could not be published or not be found again.
pub(super) fn check(outbox: &Outbox, results: &[ResultRecord]) -> SyncResult<()> {
    let max = outbox.max_payload();
    for ResultRecord { id, payload, .. } in results {
        let refused =
            |why: String| Err(SyncError::permanent(Link::Disk, format!("result {id:?} {why}")).of_record(id));
        if payload.len() > max {
            return refused(format!("has {} bytes, above the outbox's limit of {max}", payload.len()));
        }
        match id_of(payload) {
            Some(found) if found == *id => {}
            Some(found) => return refused(format!("has the id {found:?} in its JSON")),
            None => return refused("is not a JSON object with a field \"id\"".into()),
        }
    }
    Ok(())
}

/// Progress of the settlement of a job, over all its attempts while the job is in progress.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Its place in the queue for space.
    ticket: Option<BulkTicket>,
    /// The ids of its results that are in the outbox, or were; none where they must be looked up.
    published: Option<HashSet<String>>,
    /// How many of them the file has recorded.
    noted: usize,
}

impl Progress {
    /// The ids to be recorded in the file, if there are more: the first results may be sent and deleted, and not be
    /// found in the outbox any more, before the last ones get space.
    pub(super) fn to_note(&self) -> Option<&HashSet<String>> {
        self.published.as_ref().filter(|published| published.len() > self.noted)
    }

    pub(super) fn noted(&mut self) {
        self.noted = self.published.as_ref().map_or(0, HashSet::len);
    }
}

/// Reserves space in the outbox for `results`. Those of a marked job were given space before.
pub(super) fn room(
    outbox: &Outbox,
    marked: Option<Mark>,
    results: &[ResultRecord],
    progress: &mut Progress,
) -> SyncResult<BulkRoom> {
    let lengths = results.iter().map(|result| result.payload.len());
    if marked.is_some() {
        return Ok(outbox.bulk_room_for_rest(lengths));
    }
    outbox.bulk_room(lengths, &mut progress.ticket).map_err(|error| {
        SyncError::transient(Link::Disk, "the results wait for space in the outbox").because(error)
    })
}

/// Whether the rest of a settlement, or all of it, waits because unsent events take the space. Nothing of that rest
/// has reached the outbox.
pub(super) fn waits_for_room(error: &SyncError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<OutboxError>());
    source.is_some_and(is_bound)
}

fn is_bound(error: &OutboxError) -> bool {
    matches!(error, OutboxError::BulkBound { .. } | OutboxError::Bound { .. })
}

/// Appends those of `results` that are not in the outbox yet, and waits until they are durable. `noted` returns the
/// ids that the file has recorded.
pub(super) fn publish(
    outbox: &Outbox,
    mark: Mark,
    results: Vec<ResultRecord>,
    mut room: BulkRoom,
    progress: &mut Progress,
    noted: impl FnOnce() -> SyncResult<HashSet<String>>,
) -> SyncResult<()> {
    let mut published = match (mark, progress.published.take()) {
        (Mark::Done, _) => return Ok(()),
        (_, Some(published)) => published,
        (Mark::Fresh, None) => HashSet::new(),
        (Mark::Behind(last), None) => {
            let mut published = noted()?;
            progress.noted = published.len();
            published.extend(published_behind(outbox, last, &results)?);
            published
        }
    };
    let mut seen = published.clone();
    let missing: Vec<_> = results.into_iter().filter(|result| seen.insert(result.id.clone())).collect();
    let done = append_all(outbox, &missing, &mut room, &mut published);
    // After any other failure it is unknown what is on disk.
    if done.as_ref().is_err_and(waits_for_room) {
        progress.published = Some(published);
    }
    done
}

fn append_all(
    outbox: &Outbox,
    mut rest: &[ResultRecord],
    room: &mut BulkRoom,
    published: &mut HashSet<String>,
) -> SyncResult<()> {
    let start = Instant::now();
    while !rest.is_empty() {
        let (window, _) = rest.split_at(rest.len().min(MAX_IN_FLIGHT));
        let taken = append(outbox, window, room, published)?;
        if taken == 0 && start.elapsed() > BUSY_TIMEOUT {
            let text =
                format!("the outbox accepted no append of result {:?} for {BUSY_TIMEOUT:?}", rest[0].id);
            return Err(SyncError::transient(Link::Disk, text));
        }
        if taken < window.len() {
            thread::sleep(BUSY_PAUSE);
        }
        rest = &rest[taken..];
    }
    Ok(())
}

/// Appends in order, up to the first that finds too many pending appends or no space, and returns the number of
/// accepted ones.
fn append(
    outbox: &Outbox,
    results: &[ResultRecord],
    room: &mut BulkRoom,
    published: &mut HashSet<String>,
) -> SyncResult<usize> {
    let mut taken = Vec::with_capacity(results.len());
    for result in results {
        let mut append = outbox.append_bulk(Bytes::clone(&result.payload).into(), room);
        match (&mut append).now_or_never() {
            Some(Err(OutboxError::Busy { .. })) => break,
            Some(answer) => {
                let refused = answer.is_err();
                taken.push(Err(answer));
                if refused {
                    break;
                }
            }
            None => taken.push(Ok(append)),
        }
    }
    // All are awaited, also after a failed one: afterwards none is in flight.
    let answers: Vec<_> =
        taken.into_iter().map(|append| append.map_or_else(|answer| answer, Append::wait)).collect();
    let mut failed: Option<(&ResultRecord, &OutboxError)> = None;
    for (result, answer) in results.iter().zip(&answers) {
        match answer {
            Ok(_) => {
                published.insert(result.id.clone());
            }
            // An error that may have left something on disk matters more than a lack of space.
            Err(error) if failed.is_none_or(|(_, other)| is_bound(other) && !is_bound(error)) => {
                failed = Some((result, error));
            }
            Err(_) => {}
        }
    }
    match failed {
        None => Ok(answers.len()),
        Some((result, error)) => {
            let text = format!("the outbox did not accept result {:?}", result.id);
            Err(SyncError::transient(Link::Disk, text).because(error.clone()))
        }
    }
}

/// The ids of `results` that are in the outbox after the sequence `last`.
fn published_behind(outbox: &Outbox, last: u64, results: &[ResultRecord]) -> SyncResult<HashSet<String>> {
    let wanted: HashSet<_> = results.iter().map(|result| result.id.as_str()).collect();
    let newest = outbox.last_sequence();
    let failed = |error: OutboxError| {
        SyncError::transient(Link::Disk, "cannot search the outbox for results").because(error)
    };
    let mut reader = Reader::open(outbox.dir()).map_err(failed)?;
    // A mark above the last sequence is of an outbox that was deleted since: its sequences have started over.
    reader.seek(if last > newest { 0 } else { last.saturating_add(1) });
    let mut found = HashSet::new();
    while let Some(event) = reader.try_next().map_err(failed)? {
        // What follows is not acknowledged, so it may still be lost.
        if event.sequence > newest {
            break;
        }
        if let Some(id) = id_of(&event.payload).filter(|id| wanted.contains(id.as_str())) {
            found.insert(id);
        }
    }
    Ok(found)
}
