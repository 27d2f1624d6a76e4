//! The list of a batch's URLs, checked one by one and stored in a file, so that its length takes no memory.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use tempfile::TempPath;

use super::IntakeError;
use crate::batch::image_url::{shown, source};
use crate::batch::spool::{Drain, Spool};

pub use crate::batch::image_url::MAX_URL_BYTES;

/// Writes a list of URLs.
pub(super) struct UrlWriter {
    file: BufWriter<File>,
    path: TempPath,
    spool: Spool,
    limit: u64,
    count: u64,
    longest: u64,
    hasher: blake3::Hasher,
}

/// The URLs of a batch, in a file that lives as long as this.
#[derive(Debug)]
pub struct UrlList {
    path: TempPath,
    /// How many there are.
    pub count: u64,
    /// Bytes that the longest takes in JSON, with its quotes.
    pub longest: u64,
    /// Digest of all of them in their order.
    pub digest: blake3::Hash,
}

impl UrlWriter {
    /// An empty list that takes up to `limit` URLs.
    pub(super) fn new(spool: &Spool, limit: u64) -> Result<Self, IntakeError> {
        let (file, path) = spool.create()?.into_parts();
        let file = BufWriter::with_capacity(64 << 10, file);
        let spool = spool.clone();
        Ok(Self { file, path, spool, limit, count: 0, longest: 0, hasher: blake3::Hasher::new() })
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Checks a URL and adds it.
    pub(super) fn push(&mut self, url: &str) -> Result<(), IntakeError> {
        if self.count == self.limit {
            return Err(IntakeError::TooMany { what: "image_urls", limit: self.limit });
        }
        source(url).map_err(|reason| IntakeError::BadUrl { index: self.count, value: shown(url), reason })?;
        // At most MAX_URL_BYTES, so it fits.
        let length = u16::try_from(url.len()).unwrap_or(u16::MAX).to_le_bytes();
        let written = self.file.write_all(&length).and_then(|()| self.file.write_all(url.as_bytes()));
        written.map_err(|e| self.spool.failed(e))?;
        self.hasher.update(&length).update(url.as_bytes());
        let escaped = url.bytes().filter(|b| matches!(b, b'"' | b'\\')).count();
        self.longest = self.longest.max((url.len() + escaped + 2) as u64);
        self.count += 1;
        Ok(())
    }

    /// The list, complete.
    pub(super) fn finish(mut self) -> Result<UrlList, IntakeError> {
        self.file.flush().map_err(|e| self.spool.failed(e))?;
        let (count, longest) = (self.count, self.longest);
        Ok(UrlList { path: self.path, count, longest, digest: self.hasher.finalize() })
    }
}

impl UrlList {
    /// Reads the list, once: what has been read is freed; blocking.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn drain(&self) -> io::Result<UrlReader> {
        Ok(UrlReader { file: BufReader::with_capacity(64 << 10, Drain::open(&self.path)?) })
    }
}

/// Reads the URLs of a list, one after the other.
pub struct UrlReader {
    file: BufReader<Drain>,
}

impl UrlReader {
    /// The next URL; blocking.
    ///
    /// # Errors
    /// When the file can't be read, or there are no more.
    pub fn next_url(&mut self) -> io::Result<String> {
        let mut length = [0; 2];
        self.file.read_exact(&mut length)?;
        let mut url = vec![0; u16::from_le_bytes(length).into()];
        self.file.read_exact(&mut url)?;
        String::from_utf8(url).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_back_in_order_and_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().to_path_buf()).unwrap();
        let mut list = UrlWriter::new(&spool, 3).unwrap();
        for url in ["http://h/ä", "http://h/\"quoted\"", "http://h/ä"] {
            list.push(url).unwrap();
        }
        let over = list.push("http://h/4").unwrap_err();
        assert!(matches!(over, IntakeError::TooMany { limit: 3, .. }), "{over}");
        let list = list.finish().unwrap();
        assert_eq!((list.count, list.longest), (3, 21));
        let mut reader = list.drain().unwrap();
        for url in ["http://h/ä", "http://h/\"quoted\"", "http://h/ä"] {
            assert_eq!(reader.next_url().unwrap(), url);
        }
        assert!(reader.next_url().is_err());
        drop(list);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
