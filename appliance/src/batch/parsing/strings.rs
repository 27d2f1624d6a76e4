//! A reader that lets JSON pass up to a bound on each string in it.
//!
//! The JSON reader collects a string in memory before anybody can look at its length: without this a body of one
//! 256 MB string would become 256 MB of memory.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// Passes JSON on until a string in it takes more than `limit` bytes as written, escapes included.
pub(super) struct BoundedStrings<R> {
    inner: R,
    limit: usize,
    /// Bytes of the string that is open, if one is.
    open: Option<usize>,
    escaped: bool,
    exceeded: Rc<Cell<bool>>,
}

impl<R: Read> BoundedStrings<R> {
    /// The reader, and the mark that says whether the bound was why it failed.
    pub(super) fn new(inner: R, limit: usize) -> (Self, Rc<Cell<bool>>) {
        let exceeded = Rc::new(Cell::new(false));
        (Self { inner, limit, open: None, escaped: false, exceeded: Rc::clone(&exceeded) }, exceeded)
    }

    /// How many of the bytes may pass: fewer than there are where a string exceeds the bound.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        for (index, &byte) in bytes.iter().enumerate() {
            match (&mut self.open, byte) {
                (None, b'"') => self.open = Some(0),
                (None, _) => {}
                (Some(_), b'"') if !self.escaped => self.open = None,
                (Some(length), _) => {
                    *length += 1;
                    if *length > self.limit {
                        return index;
                    }
                    self.escaped = byte == b'\\' && !self.escaped;
                }
            }
        }
        bytes.len()
    }
}

impl<R: Read> Read for BoundedStrings<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // What comes before the string that is too long is read first, so that the reader knows where it stands.
        if !self.exceeded.get() {
            let count = self.inner.read(buffer)?;
            let passed = self.pass(&buffer[..count]);
            self.exceeded.set(passed < count);
            if passed > 0 || count == 0 {
                return Ok(passed);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a string is too long"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(json: &str, limit: usize) -> bool {
        let (mut reader, exceeded) = BoundedStrings::new(json.as_bytes(), limit);
        let mut text = String::new();
        let read = reader.read_to_string(&mut text);
        assert_eq!(read.is_err(), exceeded.get());
        assert!(read.is_err() || text == json);
        !exceeded.get()
    }

    #[test]
    fn strings_are_measured_and_nothing_else_is() {
        assert!(passes(r#"{"abcd": [1000000000000, "abcd", "a\"b"], "": {}}"#, 4));
        assert!(!passes(r#"["abcde"]"#, 4));
        assert!(!passes(r#"["a\"bc"]"#, 4), "an escaped quote does not end a string");
        assert!(passes(r#"["ab\\", 123456789]"#, 4), "an escaped backslash escapes nothing");
        assert!(!passes("\"never closed", 4));
    }
}
