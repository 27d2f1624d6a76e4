//! The encoded bytes as decoders read them: piece by piece, each only while there is time left.

use std::io::{BufRead, Cursor, Error, ErrorKind, Read, Result, Seek, SeekFrom};

use super::Until;

/// Most bytes that a decoder gets at once, and between two looks at the clock. Deflate makes at most eight megabytes of them, LZW
/// twenty.
const CHUNK_LEN: usize = 8 << 10;

/// Encoded bytes in memory.
#[derive(Debug)]
pub(super) struct Source<'a> {
    bytes: Cursor<&'a [u8]>,
    until: Until,
    /// Bytes that may be read before the clock is looked at.
    left: usize,
}

impl<'a> Source<'a> {
    pub(super) fn new(bytes: &'a [u8], until: Until) -> Self {
        Self { bytes: Cursor::new(bytes), until, left: 0 }
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        if self.left == 0 || self.left < bytes {
            self.left = CHUNK_LEN;
            if self.until.is_over() {
                return Err(Error::new(ErrorKind::TimedOut, "decoding took too long"));
            }
        }
        self.left = self.left.saturating_sub(bytes);
        Ok(())
    }
}

impl Read for Source<'_> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize> {
        self.spend(to.len())?;
        self.bytes.read(to)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> Result<&[u8]> {
        self.spend(0)?;
        let bytes = self.bytes.fill_buf()?;
        Ok(&bytes[..bytes.len().min(CHUNK_LEN)])
    }

    fn consume(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
        self.bytes.consume(count);
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.bytes.seek(to)
    }
}
