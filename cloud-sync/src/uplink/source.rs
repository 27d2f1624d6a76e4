//! The outbox as the uplink reads it: in groups, only what is durable, from behind what was sent.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use crate::outbox::{Outbox, OutboxError, Reader, StoredEvent};

/// Events on their way.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) events: Vec<StoredEvent>,
    /// When these are sent, everything up to this is.
    pub(super) upto: u64,
}

#[derive(Debug)]
pub(super) struct Source {
    outbox: Arc<Outbox>,
    reader: Reader,
    /// Everything up to this was given out.
    at: u64,
    /// Read already, for the next group.
    held: Option<StoredEvent>,
}

impl Source {
    pub(super) fn open(dir: &Path, outbox: Arc<Outbox>) -> Result<Self, OutboxError> {
        Ok(Self { reader: Reader::open(dir)?, outbox, at: 0, held: None })
    }

    /// Goes behind `at`.
    pub(super) fn seek(&mut self, at: u64) {
        self.at = at;
        self.held = None;
        self.reader.seek(at + 1);
    }

    /// When the next event was appended, if there is one. Nothing is given out.
    pub(super) fn oldest(&mut self) -> Option<SystemTime> {
        // From the disk each time: what was read earlier may have been deleted meanwhile.
        self.seek(self.at);
        let event = self.reader.try_next().ok().flatten();
        let appended =
            event.filter(|event| event.sequence <= self.outbox.last_sequence()).map(|e| e.appended);
        self.seek(self.at);
        appended
    }

    /// The next events up to the sequence `bound`, at most `max_events` and `max_bytes`, at least one if there is
    /// any.
    pub(super) fn gather(
        &mut self,
        bound: u64,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Group, OutboxError> {
        // A reader sees events before they are durable: those must not leave.
        let limit = self.outbox.last_sequence().min(bound);
        let mut group = Group { upto: self.at, ..Group::default() };
        let mut bytes = 0;
        while self.at < limit && group.events.len() < max_events {
            let event = match self.read() {
                Ok(event) => event,
                // What was read before it goes first.
                Err(_) if !group.events.is_empty() => {
                    self.seek(self.at);
                    break;
                }
                Err(error) => return Err(error),
            };
            let Some(event) = event.filter(|event| self.hold_behind(limit, event)) else {
                // Up to the limit there is nothing more: deleted by retention, or damaged.
                self.at = limit;
                break;
            };
            if !group.events.is_empty() && bytes + event.payload.len() > max_bytes {
                self.held = Some(event);
                break;
            }
            bytes += event.payload.len();
            self.at = event.sequence;
            group.events.push(event);
        }
        group.upto = self.at;
        Ok(group)
    }

    /// Whether `event` may go; if not, it is kept for later.
    fn hold_behind(&mut self, limit: u64, event: &StoredEvent) -> bool {
        let may_go = event.sequence <= limit;
        if !may_go {
            self.held = Some(event.clone());
        }
        may_go
    }

    fn read(&mut self) -> Result<Option<StoredEvent>, OutboxError> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let next = self.reader.try_next().and_then(|event| match event {
            Some(event) => Ok(Some(event)),
            // There should be one. The reader may have stood where a segment was just deleted: look anew.
            None => {
                self.reader.seek(self.at + 1);
                self.reader.try_next()
            }
        });
        // What cannot be read now is not lost: it is never passed over, however long the disk takes.
        next.inspect_err(|_| self.seek(self.at))
    }
}
