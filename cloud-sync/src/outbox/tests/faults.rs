//! A disk that fails on request, and that can lose power.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use crate::outbox::clock::{Clock, Manual};
use crate::outbox::disk::{Disk, SegmentFile};
use crate::outbox::{Outbox, OutboxConfig, OutboxError, Recovery, segment};

/// An operation that is about to happen.
pub(in crate::outbox) enum Op<'a> {
    Create { first: u64 },
    Write { segment: &'a SegmentFile, offset: u64, bytes: &'a [u8] },
    Sync { segment: &'a SegmentFile, path: &'a Path },
    Truncate,
    Remove,
    SyncDir,
}

/// Fault of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::outbox) enum Fault {
    /// No space. A write first writes this percentage of its bytes.
    NoSpace { percent: u8 },
    /// An input/output error; a write as above.
    Broken { percent: u8 },
    /// Only for a sync: it fails, and what it should have made durable is replaced by the earlier contents, zeros
    /// where nothing was.
    Lost,
}

/// What a loss of power leaves of unsynced writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::outbox) enum Survives {
    /// This percentage, from the front; after it the earlier contents.
    First(u64),
    /// Random sectors with this seed. The others have their earlier contents, or zeros where nothing was. The length
    /// of the file is the old one or the new one.
    Scattered(u64),
}

const SECTOR: usize = 64;

impl Survives {
    fn of(self, old: &[u8], new: &[u8]) -> Vec<u8> {
        match self {
            Self::First(percent) => {
                let same = old.iter().zip(new).take_while(|(old, new)| old == new).count();
                let (longer, shorter) = (old.len().max(new.len()), old.len().min(new.len()));
                let end = if longer > shorter {
                    longer
                } else {
                    (same..longer).rfind(|at| old[*at] != new[*at]).map_or(same, |at| at + 1)
                };
                let cut = same + (end - same) * usize::try_from(percent).unwrap() / 100;
                if percent == 100 {
                    return new.to_vec();
                }
                let cut = cut.min(new.len());
                [&new[..cut], old.get(cut..).unwrap_or_default()].concat()
            }
            Self::Scattered(seed) => {
                let draw = |at: usize| (seed ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & 1 == 1;
                let length = if draw(usize::MAX) { old.len() } else { new.len() };
                let byte = |at: usize| {
                    let kept = if draw(at / SECTOR) { new } else { old };
                    kept.get(at).copied().unwrap_or(0)
                };
                (0..length).map(byte).collect()
            }
        }
    }
}

#[derive(Debug, Default)]
struct Known {
    operations: usize,
    script: BTreeMap<usize, Fault>,
    full: bool,
    /// Maximum length of a file.
    longest: Option<u64>,
    /// Writes that extended a file.
    growths: usize,
    /// The contents of each segment that would certainly survive a loss of power.
    durable: BTreeMap<u64, Vec<u8>>,
    /// Created, and not yet durable as an entry of the directory.
    unlinked: HashSet<u64>,
}

/// Counts the operations, makes the scripted ones fail, and records what is durable.
#[derive(Debug, Default)]
pub(in crate::outbox) struct Faults(Mutex<Known>);

impl Faults {
    pub(super) fn scripted(script: impl IntoIterator<Item = (usize, Fault)>) -> Arc<Self> {
        let known = Known { script: script.into_iter().collect(), ..Known::default() };
        Arc::new(Self(Mutex::new(known)))
    }

    /// Makes the next operation fail.
    pub(super) fn fail_in(&self, operations: usize, fault: Fault) {
        let mut known = self.0.lock();
        let at = known.operations + operations;
        known.script.insert(at, fault);
    }

    /// While set, no write and no creation finds space.
    pub(super) fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    /// From now on there is no space for a file beyond this many bytes.
    pub(super) fn set_longest(&self, bytes: u64) {
        self.0.lock().longest = Some(bytes);
    }

    pub(super) fn operations(&self) -> usize {
        self.0.lock().operations
    }

    pub(super) fn growths(&self) -> usize {
        self.0.lock().growths
    }

    pub(in crate::outbox) fn before(&self, op: Op<'_>) -> io::Result<()> {
        let mut known = self.0.lock();
        let fault = {
            let at = known.operations;
            known.operations += 1;
            let too_long = |end: u64| known.longest.is_some_and(|longest| end > longest);
            let full = match op {
                Op::Create { .. } => known.full,
                Op::Write { offset, bytes, .. } => known.full || too_long(offset + bytes.len() as u64),
                _ => false,
            };
            known.script.remove(&at).or(full.then_some(Fault::NoSpace { percent: 30 }))
        };
        if let Some(fault) = fault {
            return Err(fault.happen(&op, &known));
        }
        match op {
            Op::Create { first } => {
                known.unlinked.insert(first);
                known.durable.insert(first, Vec::new());
            }
            Op::Sync { segment, path } => {
                // Recorded before the sync itself, on the only writing thread.
                known.durable.insert(segment.first, fs::read(path)?);
            }
            Op::SyncDir => known.unlinked.clear(),
            Op::Write { segment, offset, bytes } => {
                let longer = offset + bytes.len() as u64 > segment.file.metadata()?.len();
                known.growths += usize::from(longer);
            }
            Op::Truncate | Op::Remove => {}
        }
        Ok(())
    }

    /// Opening has synced everything that is there.
    fn settle(&self, dir: &Path) {
        let mut known = self.0.lock();
        for first in segment::list(dir).unwrap() {
            known.durable.insert(first, fs::read(segment::path(dir, first)).unwrap());
        }
    }

    /// Copies the outbox as it might look after a loss of power now. Segments whose creation is not durable are
    /// missing.
    pub(super) fn lose_power(&self, from: &Path, to: &Path, survives: Survives) {
        let known = self.0.lock();
        for first in segment::list(from).unwrap() {
            if known.unlinked.contains(&first) {
                continue;
            }
            let written = fs::read(segment::path(from, first)).unwrap();
            let durable = known.durable.get(&first).unwrap_or(&written);
            fs::write(segment::path(to, first), survives.of(durable, &written)).unwrap();
        }
        for name in ["cursor", "open", "ages"] {
            if let Ok(content) = fs::read(from.join(name)) {
                fs::write(to.join(name), content).unwrap();
            }
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
            Op::Sync { segment, .. } if self == Self::Lost => {
                let mut content = known.durable.get(&segment.first).cloned().unwrap_or_default();
                let length = segment.file.metadata().unwrap().len();
                content.resize(usize::try_from(length).unwrap(), 0);
                segment.file.write_all_at(&content, 0).unwrap();
            }
            _ => {}
        }
        io::Error::new(kind, "a fault that the test asked for")
    }
}

/// Unreadable offsets, and the number of reads of them that still fail. By file: a reader has its own handle.
static UNREADABLE: LazyLock<Mutex<HashMap<PathBuf, (u64, u32)>>> = LazyLock::new(Mutex::default);

/// Makes the next `times` reads of `path` at or after `from` fail.
pub(super) fn fail_reads(path: &Path, from: u64, times: u32) {
    UNREADABLE.lock().insert(path.to_owned(), (from, times));
}

/// How many of `count` bytes from `at` the disk reads: those before an unreadable offset.
pub(in crate::outbox) fn readable(path: &Path, at: u64, count: usize) -> io::Result<usize> {
    match UNREADABLE.lock().get_mut(path) {
        Some((from, times)) if at + count as u64 > *from && *times > 0 => match from.checked_sub(at) {
            Some(before) if before > 0 => Ok(usize::try_from(before).unwrap()),
            _ => {
                *times -= 1;
                Err(io::Error::other("a read that the test makes fail"))
            }
        },
        _ => Ok(count),
    }
}

/// Opens an outbox with a clock that the test controls.
pub(super) fn open_at(
    config: &OutboxConfig,
    manual: &Arc<Manual>,
) -> Result<(Outbox, Recovery), OutboxError> {
    let mut clock = Clock::new();
    clock.manual = Some(Arc::clone(manual));
    Outbox::open_on(Disk::new(&config.dir), clock, config.clone())
}

/// Opens an outbox on a disk with these faults.
pub(super) fn open(config: &OutboxConfig, faults: &Arc<Faults>) -> Result<(Outbox, Recovery), OutboxError> {
    let mut disk = Disk::new(&config.dir);
    disk.faults = Some(Arc::clone(faults));
    let opened = Outbox::open_on(disk, Clock::new(), config.clone())?;
    faults.settle(&config.dir);
    Ok(opened)
}
