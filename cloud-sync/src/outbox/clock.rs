//! The clocks of an outbox: the wall clock stamps events, observed time ages them.
//!
//! A wall clock may step by years in either direction (no battery, a late time server, a bad one), so nothing is
//! ever deleted because of it. The age of an event is the time for which a process has had the outbox open since it
//! was appended.
//!
//! Observed time is stored across restarts in the file `ages`. The first line has the format version and the observed
//! milliseconds since the outbox was created; one line per segment follows, with its first sequence and the observed
//! times of its oldest and its newest event; the last line is the CRC-32 of the others in hex. The file is replaced
//! from time to time and on closing. A crash loses what was observed since, and a segment that the file does not list
//! counts as new: events are then kept longer, never shorter.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;
#[cfg(test)]
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::error::OutboxError;
use super::ledger::SegmentMeta;
use crate::durable;
use crate::event::unix_ms;

#[derive(Debug)]
pub(super) struct Clock {
    started: Instant,
    #[cfg(test)]
    pub(super) manual: Option<Arc<Manual>>,
}

/// A clock that tests control.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Manual {
    pub(super) wall_ms: AtomicU64,
    pub(super) running_ms: AtomicU64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            #[cfg(test)]
            manual: None,
        }
    }

    /// The wall clock, in milliseconds since 1970.
    pub(super) fn wall_ms(&self) -> u64 {
        #[cfg(test)]
        if let Some(manual) = &self.manual {
            return manual.wall_ms.load(Ordering::Acquire);
        }
        unix_ms(SystemTime::now())
    }

    /// How long this clock has run. Steps of the wall clock do not affect it.
    pub(super) fn running(&self) -> Duration {
        #[cfg(test)]
        if let Some(manual) = &self.manual {
            return Duration::from_millis(manual.running_ms.load(Ordering::Acquire));
        }
        self.started.elapsed()
    }
}

const FILE: &str = "ages";
const TEMP: &str = "ages.tmp";

/// Observed times of the oldest and the newest event of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) oldest_ms: u64,
    pub(super) newest_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ages {
    /// Observed time when the outbox was opened.
    base_ms: u64,
    saved_ms: u64,
    spans: BTreeMap<u64, Span>,
}

impl Ages {
    pub(super) fn load(dir: &Path) -> Result<Self, OutboxError> {
        let path = dir.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(parse(&text).unwrap_or_else(|| {
                let path = path.display();
                tracing::warn!(%path, "damaged file: the events in the outbox count as new");
                Self::default()
            })),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                Ok(Self::default())
            }
            Err(e) => Err(OutboxError::io("read", &path, e)),
        }
    }

    /// Span of the segment that begins at `first`.
    pub(super) fn span(&self, first: u64) -> Span {
        let new = Span { oldest_ms: self.base_ms, newest_ms: self.base_ms };
        self.spans.get(&first).copied().unwrap_or(new)
    }

    /// Observed time after the process has run for `running`.
    pub(super) fn now_ms(&self, running: Duration) -> u64 {
        self.base_ms.saturating_add(u64::try_from(running.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn unsaved(&self, now_ms: u64) -> Duration {
        Duration::from_millis(now_ms.saturating_sub(self.saved_ms))
    }

    /// Replaces the file, durably.
    pub(super) fn save(
        &mut self,
        dir: &Path,
        now_ms: u64,
        segments: &VecDeque<SegmentMeta>,
    ) -> io::Result<()> {
        // Also after a failure: the next attempt can wait.
        self.saved_ms = now_ms;
        let mut text = format!("1 {now_ms}\n");
        for segment in segments {
            let Span { oldest_ms, newest_ms } = segment.span;
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {oldest_ms} {newest_ms}", segment.first);
        }
        let _ = writeln!(text, "{:08x}", crc32fast::hash(text.as_bytes()));
        durable::replace(&dir.join(FILE), TEMP, text.as_bytes())
    }
}

fn parse(text: &str) -> Option<Ages> {
    let body = text.strip_suffix('\n')?;
    let (body, sum) = body.split_at(body.rfind('\n')? + 1);
    if u32::from_str_radix(sum, 16).ok()? != crc32fast::hash(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines();
    let base_ms = lines.next()?.strip_prefix("1 ")?.parse().ok()?;
    let mut spans = BTreeMap::new();
    for line in lines {
        let mut numbers = line.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let (first, oldest_ms, newest_ms) = (next()?, next()?, next()?);
        spans.insert(first, Span { oldest_ms, newest_ms });
    }
    // The last segment was still being written: after a crash it may hold events newer than this file.
    if let Some(mut last) = spans.last_entry() {
        last.get_mut().newest_ms = base_ms;
    }
    Some(Ages { base_ms, saved_ms: base_ms, spans })
}
