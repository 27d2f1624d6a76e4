//! A disk that fails where a test says so, and that can lose power.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::outbox::disk::{Disk, SegmentFile};
use crate::outbox::{Outbox, OutboxConfig, OutboxError, Recovery, segment};

/// An operation that is about to happen.
pub(in crate::outbox) enum Op<'a> {
    Create { first: u64 },
    Write { segment: &'a SegmentFile, offset: u64, bytes: &'a [u8] },
    Sync { segment: &'a SegmentFile },
    Truncate,
    Remove,
    SyncDir,
}

/// What goes wrong at one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::outbox) enum Fault {
    /// No space. A write gets this many percent of its bytes down before it.
    NoSpace { percent: u8 },
    /// An input/output error; a write as above.
    Broken { percent: u8 },
    /// Only for a sync: it fails, and what it should have made durable has turned into zeros.
    Lost,
}

#[derive(Debug, Default)]
struct Known {
    operations: usize,
    script: BTreeMap<usize, Fault>,
    full: bool,
    /// How much of each segment would outlive a loss of power.
    durable: BTreeMap<u64, u64>,
    /// Created, and not yet durable as an entry of the directory.
    unlinked: HashSet<u64>,
}

/// Counts the operations, makes the scripted ones fail, and remembers what is durable.
#[derive(Debug, Default)]
pub(in crate::outbox) struct Faults(Mutex<Known>);

impl Faults {
    pub(super) fn scripted(script: impl IntoIterator<Item = (usize, Fault)>) -> Arc<Self> {
        let known = Known { script: script.into_iter().collect(), ..Known::default() };
        Arc::new(Self(Mutex::new(known)))
    }

    /// Makes the next operation that comes fail.
    pub(super) fn fail_in(&self, operations: usize, fault: Fault) {
        let mut known = self.0.lock();
        let at = known.operations + operations;
        known.script.insert(at, fault);
    }

    /// While set, no write and no creation finds space.
    pub(super) fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    pub(super) fn operations(&self) -> usize {
        self.0.lock().operations
    }

    pub(in crate::outbox) fn before(&self, op: Op<'_>) -> io::Result<()> {
        let mut known = self.0.lock();
        let fault = {
            let at = known.operations;
            known.operations += 1;
            let full = known.full && matches!(op, Op::Create { .. } | Op::Write { .. });
            known.script.remove(&at).or(full.then_some(Fault::NoSpace { percent: 30 }))
        };
        if let Some(fault) = fault {
            return Err(fault.happen(&op, &known));
        }
        match op {
            Op::Create { first } => {
                known.unlinked.insert(first);
                known.durable.insert(first, 0);
            }
            Op::Sync { segment } => {
                // Taken before the sync itself, on the only thread that writes.
                known.durable.insert(segment.first, segment.file.metadata()?.len());
            }
            Op::SyncDir => known.unlinked.clear(),
            Op::Write { .. } | Op::Truncate | Op::Remove => {}
        }
        Ok(())
    }

    /// Opening has forced everything that is there to the disk.
    fn settle(&self, dir: &Path) {
        let mut known = self.0.lock();
        for first in segment::list(dir).unwrap() {
            known.durable.insert(first, fs::metadata(segment::path(dir, first)).unwrap().len());
        }
    }

    /// Copies the outbox as it might look after a loss of power now: of what is not durable in each
    /// segment only `percent` remains, and segments whose creation is not durable are gone.
    pub(super) fn lose_power(&self, from: &Path, to: &Path, percent: u64) {
        let known = self.0.lock();
        for first in segment::list(from).unwrap() {
            if known.unlinked.contains(&first) {
                continue;
            }
            let bytes = fs::read(segment::path(from, first)).unwrap();
            let length = bytes.len() as u64;
            let durable = known.durable.get(&first).copied().unwrap_or(length).min(length);
            let keep = usize::try_from(durable + (length - durable) * percent / 100).unwrap();
            fs::write(segment::path(to, first), &bytes[..keep]).unwrap();
        }
        if let Ok(cursor) = fs::read(from.join("cursor")) {
            fs::write(to.join("cursor"), cursor).unwrap();
        }
    }
}

impl Fault {
    fn happen(self, op: &Op<'_>, known: &Known) -> io::Error {
        let (kind, percent) = match self {
            Self::NoSpace { percent } => (io::ErrorKind::StorageFull, percent),
            Self::Broken { percent } => (io::ErrorKind::Other, percent),
            Self::Lost => (io::ErrorKind::Other, 0),
        };
        match op {
            Op::Write { segment, offset, bytes } => {
                let part = &bytes[..bytes.len() * usize::from(percent.min(99)) / 100];
                segment.file.write_all_at(part, *offset).unwrap();
            }
            Op::Sync { segment } if self == Self::Lost => {
                let durable = known.durable.get(&segment.first).copied().unwrap_or(0);
                let length = segment.file.metadata().unwrap().len();
                let zeros = vec![0; usize::try_from(length - durable).unwrap()];
                segment.file.write_all_at(&zeros, durable).unwrap();
            }
            _ => {}
        }
        io::Error::new(kind, "a fault that the test asked for")
    }
}

/// Opens an outbox on a disk with these faults.
pub(super) fn open(config: &OutboxConfig, faults: &Arc<Faults>) -> Result<(Outbox, Recovery), OutboxError> {
    let mut disk = Disk::new(&config.dir);
    disk.faults = Some(Arc::clone(faults));
    let opened = Outbox::open_on(disk, config.clone())?;
    faults.settle(&config.dir);
    Ok(opened)
}
