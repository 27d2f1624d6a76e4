//! Reads an outbox, also while a daemon writes it: without a lock and without changing anything.
//!
//! A reader may see an event shortly before it is acknowledged. A consumer that commits what it has read must stop at
//! [`super::Outbox::last_sequence`].

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::error::OutboxError;
use super::record::RecordHeader;
use super::segment::{self, Header, Scan, Step};
use crate::event::Event;

/// How often a waiting reader polls for more.
const POLL: Duration = Duration::from_millis(50);

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its sequence in this outbox: ascending, with gaps where appends failed.
    pub sequence: u64,
    /// When it was appended.
    pub appended: SystemTime,
    /// The bytes that were appended.
    pub payload: Vec<u8>,
}

impl StoredEvent {
    fn new(header: RecordHeader, payload: &[u8]) -> Self {
        Self {
            sequence: header.sequence,
            appended: UNIX_EPOCH + Duration::from_millis(header.unix_ms),
            payload: payload.to_vec(),
        }
    }

    /// Parses the payload as an event.
    ///
    /// # Errors
    /// When it is not one.
    pub fn event(&self) -> Result<Event, serde_json::Error> {
        Event::from_json(&self.payload)
    }
}

/// Reads the events of an outbox in order. As an iterator it ends at the current end of the outbox; polled again
/// later it continues with new events.
///
/// Torn and damaged ranges are skipped, and so are events that retention deletes meanwhile. A read error of the disk
/// is not damage: the reader stays in front of it.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    next: u64,
    scan: Option<Scan>,
    /// A later segment exists, so this one will not grow any more.
    closed: bool,
    damaged_bytes: u64,
}

impl Reader {
    /// A reader at the oldest event.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, OutboxError> {
        let reader = Self { dir: dir.into(), next: 0, scan: None, closed: false, damaged_bytes: 0 };
        reader.list()?;
        Ok(reader)
    }

    /// Moves to the first event whose sequence is `sequence` or more.
    pub fn seek(&mut self, sequence: u64) {
        self.next = sequence;
        self.scan = None;
        self.closed = false;
    }

    /// Bytes skipped so far because they held no readable event.
    #[must_use]
    pub fn damaged_bytes(&self) -> u64 {
        self.damaged_bytes
    }

    /// The last `count` events, oldest first. The position of this reader does not change.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn tail(&self, count: usize) -> Result<Vec<StoredEvent>, OutboxError> {
        let mut events = VecDeque::new();
        for first in self.list()?.into_iter().rev() {
            if events.len() >= count {
                break;
            }
            let Some(mut scan) = self.open_segment(first)? else { continue };
            let mut found = VecDeque::new();
            loop {
                match scan.step().map_err(|e| self.failed(first, e))? {
                    Step::Record(header) => {
                        if found.len() + events.len() == count {
                            found.pop_front();
                        }
                        found.push_back(StoredEvent::new(header, scan.payload()));
                    }
                    Step::Damage { .. } => {}
                    Step::End { .. } => break,
                }
            }
            found.append(&mut events);
            events = found;
        }
        Ok(events.into())
    }

    /// The next event, or none when there is no further one yet.
    ///
    /// # Errors
    /// When a segment cannot be read. The reader stays where it is, so the next call retries.
    pub fn try_next(&mut self) -> Result<Option<StoredEvent>, OutboxError> {
        loop {
            let Some(scan) = &mut self.scan else {
                if !self.enter(None)? {
                    return Ok(None);
                }
                continue;
            };
            let first = scan.first;
            match scan.step() {
                Ok(Step::Record(header)) if header.sequence >= self.next => {
                    self.next = header.sequence.saturating_add(1);
                    return Ok(Some(StoredEvent::new(header, scan.payload())));
                }
                Ok(Step::Record(_)) => {}
                Ok(Step::Damage { bytes, .. }) => self.damaged_bytes += bytes,
                // The writer may have appended to this segment before it started the next: read again.
                Ok(Step::End { .. }) if !self.closed => {
                    self.closed = self.list()?.last().is_some_and(|last| *last > first);
                    if !self.closed {
                        return Ok(None);
                    }
                }
                Ok(Step::End { unread, .. }) => {
                    self.damaged_bytes += unread;
                    if !self.enter(Some(first))? {
                        return Ok(None);
                    }
                }
                Err(e) => {
                    let error = self.failed(first, e);
                    self.seek(self.next.max(first));
                    return Err(error);
                }
            }
        }
    }

    /// The next event; waits for one up to `timeout`.
    ///
    /// # Errors
    /// As [`Self::try_next`].
    pub fn next_wait(&mut self, timeout: Duration) -> Result<Option<StoredEvent>, OutboxError> {
        let start = Instant::now();
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(Some(event));
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            thread::sleep(left.min(POLL));
        }
    }

    /// Opens the segment after `after`, or the one that holds the next sequence; false when there is none.
    fn enter(&mut self, after: Option<u64>) -> Result<bool, OutboxError> {
        let list = self.list()?;
        let from = match after {
            Some(after) => list.partition_point(|first| *first <= after),
            None => list.partition_point(|first| *first <= self.next).saturating_sub(1),
        };
        for &first in &list[from..] {
            // A segment that has vanished meanwhile was the oldest: the next one follows.
            if let Some(scan) = self.open_segment(first)? {
                self.scan = Some(scan);
                self.closed = false;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn open_segment(&self, first: u64) -> Result<Option<Scan>, OutboxError> {
        let scan = match Scan::open(&self.dir, first) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| self.failed(first, e))?,
        };
        match scan.header() {
            Ok(Header::Newer(found)) => {
                let path = segment::path(&self.dir, first);
                Err(OutboxError::Version { path, found, supported: segment::FORMAT_VERSION })
            }
            // Not written yet, or damaged: the records are checked by themselves.
            _ => Ok(Some(scan)),
        }
    }

    fn list(&self) -> Result<Vec<u64>, OutboxError> {
        segment::list(&self.dir).map_err(|e| OutboxError::io("list", &self.dir, e))
    }

    fn failed(&self, first: u64, error: io::Error) -> OutboxError {
        OutboxError::io("read", &segment::path(&self.dir, first), error)
    }
}

impl Iterator for Reader {
    type Item = Result<StoredEvent, OutboxError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.try_next().transpose()
    }
}
