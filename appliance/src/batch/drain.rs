//! Files of the spool that are read for the last time: what has been read is taken off the disk, so that a body and what is
//! made of it are never there whole at once.
//!
//! Nothing is lost by it: a submission that is broken off was not acknowledged, and comes again with its body.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

/// Freed at once.
const STEP: u64 = 1 << 20;

/// Reads a file and frees what it has read.
#[derive(Debug)]
pub(super) struct Drain {
    file: File,
    read: u64,
    freed: u64,
}

impl Drain {
    /// Opens a file; blocking.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::new(OpenOptions::new().read(true).write(true).open(path)?)
    }

    /// Goes on with a file, open for writing too, from where it is read; blocking.
    pub(super) fn new(mut file: File) -> io::Result<Self> {
        let read = file.stream_position()?;
        Ok(Self { file, read, freed: 0 })
    }
}

impl Read for Drain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read += count as u64;
        let done = self.read - self.freed;
        if done >= STEP || count == 0 && done > 0 {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A file system that can't do it keeps the file whole until it is removed.
            let _ = fallocate(&self.file, flags, self.freed, done);
            self.freed = self.read;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_was_read_is_off_the_disk_and_the_rest_is_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8 + 1).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let on_disk = || std::fs::metadata(file.path()).unwrap().blocks() * 512;
        let before = on_disk();
        let mut drain = Drain::open(file.path()).unwrap();
        let mut first = vec![0; 3_000_000];
        drain.read_exact(&mut first).unwrap();
        assert!(first == bytes[..first.len()]);
        assert!(on_disk() + (1 << 20) < before, "{} of {before} bytes are still there", on_disk());
        let mut rest = Vec::new();
        drain.read_to_end(&mut rest).unwrap();
        assert!(rest == bytes[first.len()..]);
        assert!(on_disk() < 1 << 20, "{} bytes are still there", on_disk());
    }
}
