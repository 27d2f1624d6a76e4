//! Which opening of the outbox assigned which sequences, stored in the file `epochs`.
//!
//! A sequence alone does not identify an event: a directory that was restored to an earlier state (an image, writes
//! that the disk lost) assigns its later sequences again, and so does a copy of it. So each opening starts an epoch
//! with a random id, durably and before the first append. An event is identified by epoch and sequence, and two
//! histories agree up to the end of the newest epoch that both have, as with the leader epochs of Kafka's own logs
//! (KIP-101).
//!
//! One line: format version, the epochs from the oldest as `id:first`, CRC-32 of both in hex. An epoch in which
//! nothing was appended is left out by the next.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use ulid::Ulid;

use super::cursor::{checked_line, parse_line};
use super::error::OutboxError;
use crate::durable;

const FILE: &str = "epochs";
const TEMP: &str = "epochs.tmp";
/// Epoch of events that were appended before epochs were stored.
const UNKNOWN: &str = "0";
/// Maximum number of stored epochs; older ones are dropped.
const MAX_STORED: usize = 1024;
/// Maximum number of epochs that [`Epochs::upto`] returns: about 2 KiB, half of what Kafka accepts as an offset's
/// metadata.
const MAX_REPORTED: usize = 64;

/// Epochs in the order of their sequences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Epochs(Vec<Epoch>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Epoch {
    id: String,
    /// Its first sequence. It ends before the next epoch's.
    first: u64,
}

impl Epochs {
    /// The history of a log from before epochs were stored.
    #[must_use]
    pub fn unknown() -> Self {
        Self(vec![Epoch { id: UNKNOWN.to_owned(), first: 1 }])
    }

    /// The epochs of the outbox in `dir` and a new one that begins at `next`.
    pub(super) fn open(dir: &Path, next: u64) -> Result<Self, OutboxError> {
        let path = dir.join(FILE);
        let mut epochs = match fs::read(&path) {
            Ok(bytes) => parse_line(&bytes, Epochs::parse).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "damaged file: events may be sent twice");
                Self(vec![Epoch { id: new_id(), first: 1 }])
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Self::unknown(),
            Err(e) => return Err(OutboxError::io("read", &path, e)),
        };
        epochs.0.retain(|epoch| epoch.first < next);
        epochs.0.push(Epoch { id: new_id(), first: next });
        let surplus = epochs.0.len().saturating_sub(MAX_STORED);
        epochs.0.drain(..surplus);
        if let Err(error) = epochs.store(dir) {
            // Without the file nothing counts as sent: that is safe, and possible on a full disk.
            durable::remove(&path).map_err(|e| OutboxError::io("remove", &path, e))?;
            tracing::warn!(%error, path = %path.display(), "cannot write the epochs: after a crash events may be sent twice");
        }
        Ok(epochs)
    }

    fn store(&self, dir: &Path) -> io::Result<()> {
        durable::replace(&dir.join(FILE), TEMP, checked_line(self).as_bytes())
    }

    /// The first sequence of the current opening.
    #[must_use]
    pub fn current_first(&self) -> u64 {
        self.0.last().map_or(1, |epoch| epoch.first)
    }

    /// The newest epochs of the history up to `sequence`.
    #[must_use]
    pub fn upto(&self, sequence: u64) -> Self {
        let mut epochs: Vec<_> = self.0.iter().filter(|epoch| epoch.first <= sequence).cloned().collect();
        let surplus = epochs.len().saturating_sub(MAX_REPORTED);
        epochs.drain(..surplus);
        Self(epochs)
    }

    /// Sequence up to which this log, which ends at `last`, and another one with the history `other`, which ends at
    /// `other_last`, have the same events; 0 when they share no epoch.
    #[must_use]
    pub fn common(&self, last: u64, other: &Self, other_last: u64) -> u64 {
        for epoch in other.0.iter().rev() {
            if self.0.contains(epoch) {
                return self.end(epoch, last).min(other.end(epoch, other_last));
            }
        }
        0
    }

    fn end(&self, epoch: &Epoch, last: u64) -> u64 {
        let next = self.0.iter().map(|epoch| epoch.first).find(|first| *first > epoch.first);
        next.map_or(last, |first| (first - 1).min(last))
    }

    /// Parses the output of `to_string`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let of = |part: &str| {
            let (id, first) = part.split_once(':')?;
            Some(Epoch { id: id.to_owned(), first: first.parse().ok()? })
        };
        let epochs: Vec<_> = text.split(',').map(of).collect::<Option<_>>()?;
        epochs.is_sorted_by(|one, next| one.first < next.first).then_some(Self(epochs))
    }
}

impl fmt::Display for Epochs {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Epoch { id, first }) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(to, "{comma}{id}:{first}")?;
        }
        Ok(())
    }
}

fn new_id() -> String {
    Ulid::generate().to_string().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Epochs {
        Epochs::parse(text).unwrap()
    }

    #[test]
    fn histories_agree_up_to_the_end_of_the_newest_epoch_that_both_have() {
        // The same log, its bookmark behind it.
        assert_eq!(of("a:1,b:51").common(80, &of("a:1,b:51"), 70), 70);
        assert_eq!(of("a:1,b:51").common(80, &of("a:1"), 30), 30);
        // The log was restored to 50 and continued to 200, while 150 events of it had been sent.
        assert_eq!(of("a:1,c:51").common(200, &of("a:1"), 150), 50);
        assert_eq!(of("a:1,c:51").common(200, &of("a:1,b:41"), 150), 40);
        assert_eq!(of("a:1,c:31").common(200, &of("a:1,b:41"), 150), 30);
        // It was restored and nothing was appended yet.
        assert_eq!(of("a:1,c:51").common(50, &of("a:1"), 150), 50);
        assert_eq!(of("a:1,c:51").common(200, &of("x:1"), 150), 0);
        assert_eq!(of("a:1").common(9, &Epochs::default(), 5), 0);
    }

    #[test]
    fn each_opening_begins_an_epoch_and_empty_ones_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let one = Epochs::open(dir.path(), 1).unwrap();
        let two = Epochs::open(dir.path(), 1).unwrap();
        assert_eq!((one.0.len(), two.0.len()), (1, 1));
        assert_ne!(one, two);
        let three = Epochs::open(dir.path(), 10).unwrap();
        assert_eq!((three.0.len(), three.current_first()), (2, 10));
        assert_eq!(three.common(9, &two, 5), 5);
        assert_eq!(Epochs::parse(&three.to_string()), Some(three.clone()));
        // Lost writes: the log ends at 4 now.
        let four = Epochs::open(dir.path(), 5).unwrap();
        assert_eq!(four.common(100, &three, 50), 4);
        for next in 6..2000 {
            let many = Epochs::open(dir.path(), next).unwrap();
            assert!(many.0.len() <= MAX_STORED && many.upto(next).to_string().len() < 4000);
            if next % 100 != 0 {
                break;
            }
        }
    }

    #[test]
    fn what_was_written_before_epochs_were_kept_has_its_own_and_damage_shares_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let old = Epochs::open(dir.path(), 100).unwrap();
        assert_eq!(old.common(99, &Epochs::unknown(), 80), 80);
        assert_eq!(old.common(150, &Epochs::unknown(), 120), 99);
        fs::write(dir.path().join(FILE), "1 a:1 00000000\n").unwrap();
        assert_eq!(Epochs::open(dir.path(), 200).unwrap().common(199, &old, 150), 0);
        // A file where the folder should be.
        assert!(Epochs::open(&dir.path().join(FILE), 1).is_err());
    }
}
