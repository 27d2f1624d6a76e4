//! What opening an outbox does with what the last process left.
//!
//! - Bytes behind the last good record of the last segment are a torn tail: a group that was being
//!   written and was never acknowledged. They are cut off, so that the next record follows a good one.
//! - Zeros behind the last good record, or behind a torn tail, are space that the writer had put ahead of
//!   itself. They are cut off and not mentioned. They are not used again: whether they are really on the
//!   disk, and not just a length, is not known after a crash.
//! - After a loss of power zeros may also stand for a part of the last group and records of it behind
//!   them: the disk writes in the order it likes. That is damage in the last segment, reported like any
//!   other, since nobody can tell it from the loss of what was acknowledged.
//! - Damage anywhere else (a bad sector, a flipped bit) is reported and left as it is; what can be read
//!   around it stays. It is never a reason not to start.
//! - The numbering goes on behind everything that was ever seen: the last record, the names of the
//!   segments and the consumer's cursor. So the cursor can never cover an event it has not seen.
//! - What the disk does not read is tried again a few times. A segment that stays unreadable is left as it is and
//!   counts as holding as many events as may be in it, so that none of its numbers is given out again.
//! - What was read but perhaps never forced to the disk is forced now, before anything is built on it.

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

/// Times that a segment is read which the disk does not read, and the pause before each further one.
const READS: u32 = 3;
const READ_PAUSE: Duration = Duration::from_millis(100);

/// What was found when an outbox was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// Events on disk.
    pub events: u64,
    /// Segment files.
    pub segments: usize,
    /// Sequence of the last event, 0 when there is none.
    pub last_sequence: u64,
    /// Bytes of a torn tail that were cut off, up to the last that was not zero; no acknowledged event was
    /// among them.
    pub truncated_bytes: u64,
    /// Stretches that could not be read and were passed over.
    pub damaged: Vec<Damage>,
    /// The consumer's cursor was damaged: what is on disk will be sent again.
    pub cursor_lost: bool,
    /// How its newest events were lost, if they were.
    pub lost_end: Option<LostEnd>,
}

/// A stretch of a segment that holds no readable event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub path: PathBuf,
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

/// Where the writer goes on.
pub(super) struct Resumed {
    pub(super) ledger: Ledger,
    pub(super) active: Option<Active>,
    pub(super) next_sequence: u64,
    pub(super) report: Recovery,
}

/// What a walk over one segment found.
struct Walked {
    meta: SegmentMeta,
    /// The bulk records in it.
    bulk: Runs,
    /// It was read to its end, has no header and no record: nothing is lost by starting it over.
    blank: bool,
    /// Where the good records end, and how many bytes stand behind before nothing but zeros follow.
    end: u64,
    unread: u64,
    damaged: Vec<Damage>,
    /// The disk did not read all of it.
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
        let mut walked = read_segment(disk, first, next, ages, resumed.ledger.bulk.grain())?;
        resumed.ledger.bulk.add_runs(std::mem::take(&mut walked.bulk));
        resumed.next_sequence = resumed.next_sequence.max(walked.meta.last.saturating_add(1));
        if index + 1 == list.len() {
            resumed.take_last(disk, settled, walked)?;
        } else {
            if walked.unread > 0 {
                let path = disk.path(first);
                walked.damaged.push(Damage { path, offset: walked.end, bytes: walked.unread });
            }
            if walked.damaged.is_empty() {
                cut_zeros(disk, &mut walked);
            }
            resumed.report.damaged.append(&mut walked.damaged);
            resumed.ledger.add_segment(walked.meta);
        }
    }
    let ledger = &mut resumed.ledger;
    ledger.counters.last_sequence = ledger.segments.iter().map(|s| s.last).max().unwrap_or(0).max(cursor);
    resumed.report.events = ledger.segments.iter().map(|s| s.events).sum();
    resumed.report.segments = ledger.segments.len();
    resumed.report.last_sequence = ledger.counters.last_sequence;
    Ok(resumed)
}

/// Walks over a segment, again when the disk does not read it. `next` is the first sequence of the segment behind it.
/// Bulk records are counted where there is a `grain`.
fn read_segment(
    disk: &Disk,
    first: u64,
    next: Option<u64>,
    ages: &Ages,
    grain: Option<u64>,
) -> Result<Walked, OutboxError> {
    let mut walked = walk(disk, first, ages, grain)?;
    for _ in 1..READS {
        if !walked.failed {
            return Ok(walked);
        }
        thread::sleep(READ_PAUSE);
        walked = walk(disk, first, ages, grain)?;
    }
    if walked.failed {
        // The most that the file has room for.
        let records = walked.meta.bytes.saturating_sub(segment::HEADER_LEN) / record::HEADER_LEN as u64;
        let most = first.saturating_add(records).saturating_sub(1);
        let most = next.map_or(most, |next| most.min(next - 1)).max(walked.meta.last);
        walked.meta.events += most - walked.meta.last;
        walked.meta.last = most;
    }
    Ok(walked)
}

fn walk(disk: &Disk, first: u64, ages: &Ages, grain: Option<u64>) -> Result<Walked, OutboxError> {
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
                // A bad sector. Nobody knows what lies behind it: it is damage, and no torn tail.
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
    Ok(Walked { meta, bulk, blank, end, unread, damaged, failed })
}

/// Cuts off the zeros behind the records of a closed segment; a crash or a failure kept the writer from it.
/// They cost only space, so a disk that does not let go of them is no reason not to start.
fn cut_zeros(disk: &Disk, closed: &mut Walked) {
    if closed.end < closed.meta.bytes
        && let Ok(segment) = disk.open(closed.meta.first)
        && segment.file.set_len(closed.end).and_then(|()| durable::sync_file(&segment.file)).is_ok()
    {
        closed.meta.bytes = closed.end;
    }
}

impl Resumed {
    /// Cuts the torn tail and the zeros of the last segment, and goes on writing in it if it is whole.
    fn take_last(&mut self, disk: &Disk, settled: &Settled, mut last: Walked) -> Result<(), OutboxError> {
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
            // A blank file is written anew rather than replaced: a reader may hold it open.
            self.active = Some(Active { segment, length: keep, file_bytes: keep, step: settled.step_bytes });
        } else if keep == 0 {
            disk.remove(segment.first).map_err(fail("remove"))?;
        }
        Ok(())
    }
}

/// Under `os_buffered` this file holds the boot id of the machine for as long as the outbox is open. Found there
/// after another boot, it says that power was lost while events were only buffered.
const OPEN_FILE: &str = "open";
const OPEN_TEMP: &str = "open.tmp";

/// How the newest events were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostEnd {
    /// The log ends before what the consumer has committed.
    BeforeCursor,
    /// The machine went down while events were only buffered (`os_buffered`); it is not known whether any were lost.
    PowerLost,
}

/// Looks for a loss and notes durably that the log is open. `last` is the last sequence in the segments, if there are any.
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

/// Notes that all events are durable.
pub(super) fn mark_closed(dir: &Path) -> io::Result<()> {
    durable::remove(&dir.join(OPEN_FILE))
}
