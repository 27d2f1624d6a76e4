//! Reading an outbox, also while a daemon writes it: no lock, no trace left.
//!
//! A reader may see an event a moment before it is acknowledged. Who acts on what it reads and then
//! commits must stop at [`super::Outbox::last_sequence`].

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::error::OutboxError;
use super::record::RecordHeader;
use super::segment::{self, Header, Scan, Step};
use crate::event::Event;

/// How often a waiting reader looks for more.
const POLL: Duration = Duration::from_millis(50);

/// One event as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its number in this outbox: rising, with gaps where appends failed.
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

    /// The payload as an event.
    ///
    /// # Errors
    /// When it is none.
    pub fn event(&self) -> Result<Event, serde_json::Error> {
        Event::from_json(&self.payload)
    }
}

/// Reads the events of an outbox in order. As an iterator it ends where the outbox ends now; asked again
/// later it goes on with what has come.
///
/// Torn and damaged stretches are passed over, and so are events that retention deletes under way. What the disk does
/// not read is no damage: the reader stays in front of it.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    next: u64,
    scan: Option<Scan>,
    /// A later segment exists, so what is read of this one now is all there will be.
    closed: bool,
    damaged_bytes: u64,
}

impl Reader {
    /// A reader at the oldest event.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, OutboxError> {
        let reader = Self { dir: dir.into(), next: 0, scan: None, closed: false, damaged_bytes: 0 };
        reader.list()?;
        Ok(reader)
    }

    /// Goes to the first event whose sequence is `sequence` or more.
    pub fn seek(&mut self, sequence: u64) {
        self.next = sequence;
        self.scan = None;
        self.closed = false;
    }

    /// Bytes passed over so far because they held no readable event.
    #[must_use]
    pub fn damaged_bytes(&self) -> u64 {
        self.damaged_bytes
    }

    /// The last `count` events, oldest first. This reader stays where it is.
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
    /// When a segment cannot be read. The reader stays where it is, so the next call tries again.
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
                // The writer may have added to this segment before it went on to the next: look again.
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

    /// Opens the segment behind `after`, or the one that holds the next sequence; false when none is there.
    fn enter(&mut self, after: Option<u64>) -> Result<bool, OutboxError> {
        let list = self.list()?;
        let from = match after {
            Some(after) => list.partition_point(|first| *first <= after),
            None => list.partition_point(|first| *first <= self.next).saturating_sub(1),
        };
        for &first in &list[from..] {
            // One that has vanished meanwhile was the oldest: the one behind it is next.
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
            // Not written yet, or damaged: the records speak for themselves.
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
