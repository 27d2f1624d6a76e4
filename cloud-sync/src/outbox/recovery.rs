//! What opening an outbox does with the files of the last process.
//!
//! - Bytes after the last good record of the last segment are a torn tail: a group that was being written and was
//!   never acknowledged. They are truncated, so that the next record follows a good one.
//! - Zeros after the last good record, or after a torn tail, are space that the writer had prepared. They are
//!   truncated and not reported. They are not reused: after a crash it is unknown whether they are on the disk or
//!   just a length.
//! - After a loss of power zeros may also stand for a part of the last group with records of it after them: the disk
//!   writes in any order. That is damage in the last segment, reported like any other, because it cannot be
//!   distinguished from the loss of acknowledged events.
//! - Damage anywhere else (a bad sector, a flipped bit) is reported and left unchanged; readable records around it
//!   are preserved. It never prevents the start.
//! - Sequences continue after every one that was ever seen: the last record, the names of the segments and the
//!   consumer's cursor. So the cursor can never cover an event that it has not seen.
//! - A read error of the disk is retried a few times. A segment that stays unreadable is left unchanged and counts as
//!   holding the maximum number of events that fit into it, so that none of its sequences is assigned again.
//! - What was read but perhaps never synced is synced now, before anything is built on it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::clock::Ages;
use super::config::{Durability, Settled};
use super::disk::Disk;
use super::error::OutboxError;
use super::ledger::{Ledger, SegmentMeta};
use super::quota::{Bulk, Runs};
use super::record;
use super::segment::{self, Header, Scan, Step};
use super::writer::Active;
use crate::durable;

/// Number of attempts to read a segment with read errors, and the pause before each further one.
const READ_ATTEMPTS: u32 = 3;
const READ_PAUSE: Duration = Duration::from_millis(100);

/// What was found when an outbox was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// Events on disk.
    pub events: u64,
    /// Segment files.
    pub segments: usize,
    /// Sequence of the last event, 0 if there is none.
    pub last_sequence: u64,
    /// Bytes of a torn tail that were truncated, up to the last nonzero one; they held no acknowledged event.
    pub truncated_bytes: u64,
    /// Ranges that could not be read and were skipped.
    pub damaged: Vec<Damage>,
    /// The consumer's cursor was damaged: the events on disk will be sent again.
    pub cursor_lost: bool,
    /// How the newest events were lost, if they were.
    pub lost_end: Option<LostEnd>,
}

/// A range of a segment that holds no readable event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub path: PathBuf,
    /// Its offset.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// The state from which the writer continues.
pub(super) struct Resumed {
    pub(super) ledger: Ledger,
    pub(super) active: Option<Active>,
    pub(super) next_sequence: u64,
    pub(super) report: Recovery,
}

/// Result of scanning one segment.
struct Scanned {
    meta: SegmentMeta,
    /// Its bulk records.
    bulk: Runs,
    /// It was read to its end, and has no header and no record: starting it over loses nothing.
    blank: bool,
    /// Where the good records end, and how many bytes up to the last nonzero one follow.
    end: u64,
    unread: u64,
    damaged: Vec<Damage>,
    /// The disk could not read all of it.
    failed: bool,
}

pub(super) fn resume(
    disk: &Disk,
    settled: &Settled,
    ages: &Ages,
    cursor: u64,
) -> Result<Resumed, OutboxError> {
    let list = segment::list(disk.dir()).map_err(|e| OutboxError::io("list", disk.dir(), e))?;
    let mut resumed = Resumed {
        ledger: Ledger { bulk: Bulk::new(&settled.config), ..Ledger::default() },
        active: None,
        next_sequence: cursor.saturating_add(1),
        report: Recovery::default(),
    };
    for (index, &first) in list.iter().enumerate() {
        let next = list.get(index + 1).copied();
        let mut scanned = read_segment(disk, first, next, ages, resumed.ledger.bulk.grain())?;
        resumed.ledger.bulk.add_runs(std::mem::take(&mut scanned.bulk));
        resumed.next_sequence = resumed.next_sequence.max(scanned.meta.last.saturating_add(1));
        if index + 1 == list.len() {
            resumed.take_last(disk, settled, scanned)?;
        } else {
            if scanned.unread > 0 {
                let path = disk.path(first);
                scanned.damaged.push(Damage { path, offset: scanned.end, bytes: scanned.unread });
            }
            if scanned.damaged.is_empty() {
                cut_zeros(disk, &mut scanned);
            }
            resumed.report.damaged.append(&mut scanned.damaged);
            resumed.ledger.add_segment(scanned.meta);
        }
    }
    let ledger = &mut resumed.ledger;
    ledger.counters.last_sequence = ledger.segments.iter().map(|s| s.last).max().unwrap_or(0).max(cursor);
    resumed.report.events = ledger.segments.iter().map(|s| s.events).sum();
    resumed.report.segments = ledger.segments.len();
    resumed.report.last_sequence = ledger.counters.last_sequence;
    Ok(resumed)
}

/// Scans a segment, repeatedly on read errors. `next` is the first sequence of the following segment. Bulk records
/// are counted where there is a `grain`.
fn read_segment(
    disk: &Disk,
    first: u64,
    next: Option<u64>,
    ages: &Ages,
    grain: Option<u64>,
) -> Result<Scanned, OutboxError> {
    let mut scanned = scan_segment(disk, first, ages, grain)?;
    for _ in 1..READ_ATTEMPTS {
        if !scanned.failed {
            return Ok(scanned);
        }
        thread::sleep(READ_PAUSE);
        scanned = scan_segment(disk, first, ages, grain)?;
    }
    if scanned.failed {
        // The maximum for which the file has space.
        let records = scanned.meta.bytes.saturating_sub(segment::HEADER_LEN) / record::HEADER_LEN as u64;
        let most = first.saturating_add(records).saturating_sub(1);
        let most = next.map_or(most, |next| most.min(next - 1)).max(scanned.meta.last);
        scanned.meta.events += most - scanned.meta.last;
        scanned.meta.last = most;
    }
    Ok(scanned)
}

fn scan_segment(disk: &Disk, first: u64, ages: &Ages, grain: Option<u64>) -> Result<Scanned, OutboxError> {
    let path = disk.path(first);
    let fail = |e| OutboxError::io("read", &path, e);
    let length = fs::metadata(&path).map_err(fail)?.len();
    let mut scan = Scan::open(disk.dir(), first).map_err(fail)?;
    let header = scan.header();
    if let Ok(Header::Newer(found)) = header {
        return Err(OutboxError::Version { path, found, supported: segment::FORMAT_VERSION });
    }
    let damage = |offset, bytes| Damage { path: path.clone(), offset, bytes };
    let mut damaged = Vec::new();
    if !matches!(header, Ok(Header::Good)) {
        damaged.push(damage(0, segment::HEADER_LEN.min(length)));
    }
    let span = ages.span(first);
    let mut meta = SegmentMeta { first, last: 0, events: 0, bytes: length, oldest_wall_ms: 0, span };
    let mut bulk = Runs::new(grain.unwrap_or_default());
    let mut failed = header.is_err();
    let mut readable = header.is_ok();
    let (end, unread) = loop {
        match scan.step() {
            Ok(Step::Record(header)) => {
                if meta.events == 0 {
                    meta.oldest_wall_ms = header.unix_ms;
                }
                meta.events += 1;
                if header.bulk && grain.is_some() {
                    bulk.add(header.sequence, record::size(header.length));
                }
            }
            Ok(Step::Damage { offset, bytes }) => damaged.push(damage(offset, bytes)),
            Ok(Step::End { offset, unread }) => break (offset.min(length), unread),
            Err(_) => {
                // A bad sector. What is behind it is unknown: it is damage, not a torn tail.
                readable = false;
                failed = true;
                let offset = scan.offset().min(length);
                damaged.push(damage(offset, length - offset));
                break (length, 0);
            }
        }
    };
    meta.last = scan.last();
    let blank = readable && meta.events == 0 && !matches!(header, Ok(Header::Good));
    Ok(Scanned { meta, bulk, blank, end, unread, damaged, failed })
}

/// Truncates the zeros after the records of a closed segment, which a crash or a failure has left. They only take
/// space, so an error here does not prevent the start.
fn cut_zeros(disk: &Disk, closed: &mut Scanned) {
    if closed.end < closed.meta.bytes
        && let Ok(segment) = disk.open(closed.meta.first)
        && segment.file.set_len(closed.end).and_then(|()| durable::sync_file(&segment.file)).is_ok()
    {
        closed.meta.bytes = closed.end;
    }
}

impl Resumed {
    /// Truncates the torn tail and the zeros of the last segment, and continues writing to it if it is intact.
    fn take_last(&mut self, disk: &Disk, settled: &Settled, mut last: Scanned) -> Result<(), OutboxError> {
        let path = disk.path(last.meta.first);
        let fail = |action| {
            let path = &path;
            move |e| OutboxError::io(action, path, e)
        };
        let keep = if last.blank { 0 } else { last.end };
        let whole = last.blank || last.damaged.is_empty();
        if !last.blank {
            self.report.damaged.append(&mut last.damaged);
        }
        let segment = disk.open(last.meta.first).map_err(fail("open"))?;
        if keep < last.meta.bytes {
            self.report.truncated_bytes += (last.end + last.unread).saturating_sub(keep);
            last.meta.bytes = keep;
            segment.file.set_len(keep).map_err(fail("truncate"))?;
        }
        durable::sync_file(&segment.file).map_err(fail("sync"))?;
        disk.sync_dir().map_err(fail("sync"))?;

        let follows_on = self.next_sequence == last.meta.last.saturating_add(1);
        let has_room = keep < settled.config.segment_bytes;
        if keep > 0 {
            self.ledger.add_segment(last.meta);
        }
        if whole && follows_on && has_room {
            // A blank file is rewritten rather than replaced: a reader may hold it open.
            self.active = Some(Active { segment, length: keep, file_bytes: keep, step: settled.step_bytes });
        } else if keep == 0 {
            disk.remove(segment.first).map_err(fail("remove"))?;
        }
        Ok(())
    }
}

/// Under `os_buffered` this file holds the boot id of the machine while the outbox is open. A different boot id in it
/// means that power was lost while events were only buffered.
const OPEN_FILE: &str = "open";
const OPEN_TEMP: &str = "open.tmp";

/// How the newest events were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostEnd {
    /// The log ends before the sequence that the consumer has committed.
    BeforeCursor,
    /// The machine went down while events were only buffered (`os_buffered`); it is unknown whether any were lost.
    PowerLost,
}

/// Detects a loss and records durably that the log is open. `last` is the last sequence in the segments, if there are
/// any.
pub(super) fn detect_loss(
    dir: &Path,
    durability: Durability,
    last: Option<u64>,
    committed: u64,
) -> Result<Option<LostEnd>, OutboxError> {
    let path = dir.join(OPEN_FILE);
    let opened_in = match fs::read_to_string(&path) {
        Ok(boot) => Some(boot),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => None,
        Err(e) => return Err(OutboxError::io("read", &path, e)),
    };
    let boot = durable::boot_id();
    let lost = match opened_in {
        _ if committed > last.unwrap_or(0) => Some(LostEnd::BeforeCursor),
        Some(opened_in) if opened_in != boot => Some(LostEnd::PowerLost),
        _ => None,
    };
    match durability {
        Durability::Fsync => mark_closed(dir),
        Durability::OsBuffered => durable::replace(&path, OPEN_TEMP, boot.as_bytes()),
    }
    .map_err(|e| OutboxError::storage("write", &path, 0, e))?;
    Ok(lost)
}

/// Records that all events are durable.
pub(super) fn mark_closed(dir: &Path) -> io::Result<()> {
    durable::remove(&dir.join(OPEN_FILE))
}
