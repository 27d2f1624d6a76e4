//! One file of the outbox: its name, its header, and the scan of its records.
//!
//! `00000000000000000001.seg` is named after its first sequence. Its header is 24 bytes:
//! ```text
//! offset  0  8 bytes  "WEIROBX\0"
//!         8  u32      format version, 1
//!        12  u32      CRC-32 of the version and the first sequence
//!        16  u64      first sequence
//! ```
//! Records follow without gaps, and their sequences increase by one. That lets a reader that has lost its position (a
//! damaged record) find the next record reliably: it tries every offset until one holds a plausible header whose
//! checksum matches.
//!
//! Zeros may follow the records of the segment that is being written (see `writer`), and those of one that could not
//! be closed cleanly. No record starts with sixteen zeros (its sequence is at least 1), so zeros up to the end of the
//! file mean that there is no further record, or none yet. Zeros followed by other bytes are damage like any other.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::record::{self, RecordHeader};

pub(super) const HEADER_LEN: u64 = 24;
pub(super) const FORMAT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"WEIROBX\0";
const SUFFIX: &str = ".seg";
const READ_AHEAD: usize = 64 << 10;
static ZEROS: [u8; 4 << 10] = [0; 4 << 10];

pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}{SUFFIX}"))
}

fn parse_name(name: &OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_suffix(SUFFIX)?;
    let first =
        (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?;
    // Sequences start at 1: a file with another name is not a segment.
    first.filter(|first| *first > 0)
}

/// The first sequences of the segments in `dir`, ascending.
pub(super) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(first) = parse_name(&entry.file_name()) {
            found.push(first);
        }
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn header(first: u64) -> [u8; HEADER_LEN as usize] {
    let mut bytes = [0; HEADER_LEN as usize];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&header_sum(FORMAT_VERSION, first).to_le_bytes());
    bytes[16..].copy_from_slice(&first.to_le_bytes());
    bytes
}

fn header_sum(version: u32, first: u64) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&version.to_le_bytes());
    sum.update(&first.to_le_bytes());
    sum.finalize()
}

/// State of a segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Good,
    /// Too short or damaged. Its records can still be read: the name gives the first sequence.
    Damaged,
    /// Intact, but of an unsupported version.
    Newer(u32),
}

/// Result of one step of the scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A good record; [`Scan::payload`] returns its bytes.
    Record(RecordHeader),
    /// `bytes` from `offset` are not records; a good one follows.
    Damage { offset: u64, bytes: u64 },
    /// No good record from `offset` to the end. `unread` bytes from there contain nonzero ones; those after them are
    /// zeros. More may be written there later.
    End { offset: u64, unread: u64 },
}

/// A scan of the records of one segment. It may run concurrently with the writer.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) first: u64,
    #[cfg(test)]
    path: PathBuf,
    file: File,
    offset: u64,
    last: u64,
    /// Damaged bytes since the last good record.
    skipped: u64,
    payload: (u64, usize),
    window: Vec<u8>,
    window_at: u64,
}

impl Scan {
    pub(super) fn open(dir: &Path, first: u64) -> io::Result<Self> {
        let path = path(dir, first);
        let file = File::open(&path)?;
        Ok(Self {
            first,
            #[cfg(test)]
            path,
            file,
            offset: HEADER_LEN,
            last: first.saturating_sub(1),
            skipped: 0,
            payload: (HEADER_LEN, 0),
            window: Vec::new(),
            window_at: 0,
        })
    }

    pub(super) fn header(&self) -> io::Result<Header> {
        let mut bytes = [0; HEADER_LEN as usize];
        #[cfg(test)]
        super::tests::faults::readable(&self.path, 0, bytes.len())?;
        match self.file.read_exact_at(&mut bytes, 0) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Header::Damaged),
            other => other?,
        }
        let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        let sum = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        let sound = &bytes[..8] == MAGIC
            && sum == header_sum(version, self.first)
            && bytes[16..] == self.first.to_le_bytes();
        Ok(match (sound, version) {
            (false, _) => Header::Damaged,
            (true, FORMAT_VERSION) => Header::Good,
            (true, _) => Header::Newer(version),
        })
    }

    /// The last sequence that was read; the one before the first if there was none.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Offset at which the next record is expected.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The payload of the record that [`Self::step`] returned last.
    pub(super) fn payload(&self) -> &[u8] {
        let start = usize::try_from(self.payload.0 - self.window_at).unwrap_or(usize::MAX);
        self.window.get(start..start + self.payload.1).unwrap_or_default()
    }

    pub(super) fn step(&mut self) -> io::Result<Step> {
        if let Some(header) = self.record_at(self.offset)? {
            return Ok(self.take(header));
        }
        // What was read ahead may have been zeros then: read the file again.
        self.window.clear();
        if let Some(header) = self.record_at(self.offset)? {
            return Ok(self.take(header));
        }
        let offset = self.offset;
        if self.next_nonzero(offset)?.is_none() {
            return Ok(Step::End { offset, unread: 0 });
        }
        let found = self.search()?;
        // The writer may be active: what is good now was incomplete a moment ago, or it was restarted and has
        // overwritten a torn tail. So read once more.
        self.window.clear();
        if let Some(header) = self.record_at(offset)? {
            return Ok(self.take(header));
        }
        let Some(at) = found else {
            let unread = self.nonzero_end(offset)? - offset;
            return Ok(Step::End { offset, unread });
        };
        self.skipped += at - offset;
        self.offset = at;
        Ok(Step::Damage { offset, bytes: at - offset })
    }

    fn take(&mut self, header: RecordHeader) -> Step {
        self.payload = (self.offset + record::HEADER_LEN as u64, header.length);
        self.offset += record::size(header.length);
        self.last = header.sequence;
        self.skipped = 0;
        Step::Record(header)
    }

    /// The next offset after the current one that holds a good record.
    fn search(&mut self) -> io::Result<Option<u64>> {
        let length = self.file.metadata()?.len();
        let last_possible = length.saturating_sub(record::HEADER_LEN as u64);
        let mut at = self.offset + 1;
        while at <= last_possible {
            if self.record_at(at)?.is_some() {
                return Ok(Some(at));
            }
            at += 1;
            let ahead = self.bytes(at, record::NONZERO_WITHIN)?;
            if ahead == &ZEROS[..ahead.len()] {
                let Some(nonzero) = self.next_nonzero(at)? else { break };
                at = at.max(nonzero + 1 - record::NONZERO_WITHIN as u64);
            }
        }
        Ok(None)
    }

    /// The first nonzero byte from `from` on.
    fn next_nonzero(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        loop {
            let bytes = self.bytes(at, ZEROS.len())?;
            if bytes.is_empty() {
                return Ok(None);
            }
            // Comparing a whole block first is many times faster than checking each byte.
            if bytes != &ZEROS[..bytes.len()]
                && let Some(index) = bytes.iter().position(|byte| *byte != 0)
            {
                return Ok(Some(at + index as u64));
            }
            at += bytes.len() as u64;
        }
    }

    /// The end of the nonzero bytes from `from` on; `from` when there are only zeros.
    fn nonzero_end(&mut self, from: u64) -> io::Result<u64> {
        let (mut at, mut end) = (from, from);
        loop {
            let bytes = self.bytes(at, ZEROS.len())?;
            if bytes.is_empty() {
                return Ok(end);
            }
            if bytes != &ZEROS[..bytes.len()]
                && let Some(index) = bytes.iter().rposition(|byte| *byte != 0)
            {
                end = at + index as u64 + 1;
            }
            at += bytes.len() as u64;
        }
    }

    fn record_at(&mut self, at: u64) -> io::Result<Option<RecordHeader>> {
        // Sequences increase by one, and a record takes at least its header: so the number of skipped bytes bounds
        // the sequence.
        let lost_at_most = (self.skipped + at - self.offset) / record::HEADER_LEN as u64;
        let last = self.last;
        let Some(header) = RecordHeader::parse(self.bytes(at, record::HEADER_LEN)?) else { return Ok(None) };
        let plausible = header.length <= record::MAX_PAYLOAD
            && header.sequence > last
            && header.sequence - last <= lost_at_most + 1;
        if !plausible {
            return Ok(None);
        }
        let whole = self.bytes(at, record::HEADER_LEN + header.length)?;
        let good =
            whole.len() == record::HEADER_LEN + header.length && header.matches(&whole[record::HEADER_LEN..]);
        Ok(good.then_some(header))
    }

    /// Reads from `at` into the window after `had`.
    fn read_window(&mut self, had: usize, at: u64) -> io::Result<usize> {
        let end = self.window.len();
        #[cfg(test)]
        let end = had + super::tests::faults::readable(&self.path, at, end - had)?;
        self.file.read_at(&mut self.window[had..end], at)
    }

    /// `count` bytes from `at`, fewer at the end of the file. Before the start of the window it is read again.
    fn bytes(&mut self, at: u64, count: usize) -> io::Result<&[u8]> {
        let mut start = usize::try_from(at.saturating_sub(self.window_at)).unwrap_or(usize::MAX);
        if at < self.window_at || start > self.window.len() {
            self.window.clear();
        }
        if self.window.is_empty() {
            self.window_at = at;
            start = 0;
        }
        if self.window.len() - start < count {
            self.window.drain(..start);
            self.window_at = at;
            start = 0;
            while self.window.len() < count {
                let had = self.window.len();
                self.window.resize((count + READ_AHEAD).max(had), 0);
                let read = self.read_window(had, at + had as u64);
                self.window.truncate(had + read.as_ref().copied().unwrap_or(0));
                if read? == 0 {
                    break;
                }
            }
        }
        let end = (start + count).min(self.window.len());
        Ok(&self.window[start..end])
    }
}
