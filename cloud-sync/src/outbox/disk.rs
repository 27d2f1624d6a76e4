//! Every operation of the writer on segment files, in one place, so that tests can make each one fail.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::segment;
#[cfg(test)]
use super::tests::faults::{Faults, Op};
use crate::durable;

/// A segment file that is open for writing.
#[derive(Debug)]
pub(super) struct SegmentFile {
    pub(super) first: u64,
    pub(super) file: File,
}

/// The directory of an outbox, for its writer.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    #[cfg(test)]
    pub(super) faults: Option<std::sync::Arc<Faults>>,
}

impl Disk {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            #[cfg(test)]
            faults: None,
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, first: u64) -> PathBuf {
        segment::path(&self.dir, first)
    }

    /// Creates an empty segment file. It is not durable before [`Self::sync_dir`].
    pub(super) fn create(&self, first: u64) -> io::Result<SegmentFile> {
        #[cfg(test)]
        self.fault(Op::Create { first })?;
        let file = File::options().write(true).create_new(true).open(self.path(first))?;
        Ok(SegmentFile { first, file })
    }

    /// Opens an existing segment file.
    pub(super) fn open(&self, first: u64) -> io::Result<SegmentFile> {
        let file = File::options().write(true).open(self.path(first))?;
        Ok(SegmentFile { first, file })
    }

    /// Writes at an offset and not at the file position, which is undefined after a failed write.
    pub(super) fn write(&self, segment: &SegmentFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        self.fault(Op::Write { segment, offset, bytes })?;
        segment.file.write_all_at(bytes, offset)
    }

    pub(super) fn sync(&self, segment: &SegmentFile) -> io::Result<()> {
        #[cfg(test)]
        self.fault(Op::Sync { segment, path: &self.path(segment.first) })?;
        durable::sync_data(&segment.file)
    }

    pub(super) fn truncate(&self, segment: &SegmentFile, length: u64) -> io::Result<()> {
        #[cfg(test)]
        self.fault(Op::Truncate)?;
        segment.file.set_len(length)
    }

    /// Removes a segment file; a missing one counts as removed.
    pub(super) fn remove(&self, first: u64) -> io::Result<()> {
        #[cfg(test)]
        self.fault(Op::Remove)?;
        durable::remove_if_exists(&self.path(first)).map(|_| ())
    }

    /// Makes the creations and removals of files durable.
    pub(super) fn sync_dir(&self) -> io::Result<()> {
        #[cfg(test)]
        self.fault(Op::SyncDir)?;
        durable::sync_dir(&self.dir)
    }

    #[cfg(test)]
    fn fault(&self, op: Op<'_>) -> io::Result<()> {
        self.faults.as_ref().map_or(Ok(()), |faults| faults.before(op))
    }
}
