//! The list of a batch's URLs, checked one by one and kept in a file: 100,000 of them need no memory.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use tempfile::TempPath;
use url::Url;

use super::IntakeError;
use crate::batch::spool::Spool;

/// Longest URL, in bytes.
pub const MAX_URL_BYTES: usize = 4096;

/// Most of a refused URL that is shown.
const SHOWN_CHARS: usize = 100;

/// A list under construction.
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
        check(url).map_err(|reason| IntakeError::BadUrl { index: self.count, value: shown(url), reason })?;
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
    /// Reads the list from its beginning; blocking.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn read(&self) -> io::Result<UrlReader> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(UrlReader { file: BufReader::with_capacity(64 << 10, file) })
    }
}

/// Reads the URLs of a list, one after the other.
pub struct UrlReader {
    file: BufReader<File>,
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

/// Whether a URL is one that a worker can load. Where it leads to is checked when it is fetched.
fn check(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > MAX_URL_BYTES {
        return Err("it is longer than 4096 bytes");
    }
    if text.chars().any(char::is_control) {
        return Err("it has a control character in it");
    }
    let url = Url::parse(text).map_err(|_| "it is no URL")?;
    match url.scheme() {
        "http" | "https" => Ok(()),
        "s3" if url.host_str().is_none_or(str::is_empty) => Err("it names no bucket"),
        "s3" if url.path().len() < 2 => Err("it names no object in the bucket"),
        "s3" => Ok(()),
        _ => Err("its scheme is not http, https or s3"),
    }
}

/// The beginning of a URL without its query and credentials, which may be secrets.
fn shown(url: &str) -> String {
    let public = url.split(['?', '#']).next().unwrap_or_default();
    let public = match (public.split_once("://"), public.rfind('@')) {
        (Some((scheme, _)), Some(at)) => format!("{scheme}://…{}", &public[at..]),
        _ => public.to_owned(),
    };
    let mut text: String = public.chars().take(SHOWN_CHARS).collect();
    if text.len() < public.len() || public.len() < url.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_that_a_worker_can_load_are_taken() {
        let longest = format!("https://h/{}", "a".repeat(MAX_URL_BYTES - 10));
        for url in
            ["http://h/a.jpg", "HTTPS://h:8080/?q=1#f", "s3://bucket/a/b c.jpg", "http://[::1]/", &longest]
        {
            assert_eq!(check(url), Ok(()), "{url}");
        }
        let longer = format!("{longest}a");
        for (url, reason) in [
            ("", "empty"),
            (longer.as_str(), "4096"),
            ("http://h/\n", "control"),
            ("fish.jpg", "no URL"),
            ("http://", "no URL"),
            ("file:///etc/passwd", "scheme"),
            ("blob:0", "scheme"),
            ("ftp://h/a", "scheme"),
            ("data:image/png;base64,AA==", "scheme"),
            ("s3:///key", "bucket"),
            ("s3://bucket", "object"),
            ("s3://bucket/", "object"),
        ] {
            assert!(check(url).unwrap_err().contains(reason), "{url}: {:?}", check(url));
        }
    }

    #[test]
    fn a_refusal_shows_no_secret_of_a_url() {
        assert_eq!(shown("ftp://h/a?X-Amz-Signature=abc"), "ftp://h/a…");
        assert_eq!(shown("ftp://user:hunter2@h/a"), "ftp://…@h/a…");
        assert_eq!(shown("gopher"), "gopher");
        assert_eq!(shown(&"ä".repeat(200)), format!("{}…", "ä".repeat(100)));
    }

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
        let mut reader = list.read().unwrap();
        for url in ["http://h/ä", "http://h/\"quoted\"", "http://h/ä"] {
            assert_eq!(reader.next_url().unwrap(), url);
        }
        assert!(reader.next_url().is_err());
        drop(list);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
