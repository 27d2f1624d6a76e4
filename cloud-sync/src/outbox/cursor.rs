//! Sequence up to which the consumer has sent the events, stored in the file `cursor`.
//!
//! One line: format version, sequence, CRC-32 of the two in hex. It is replaced by a rename, so it is always whole.
//! An unreadable cursor counts as 0: events are sent again, none is skipped.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::OutboxError;
use crate::durable;

const FILE: &str = "cursor";
const TEMP: &str = "cursor.tmp";

#[derive(Debug)]
pub(super) struct Cursor {
    dir: PathBuf,
    upto: u64,
}

impl Cursor {
    /// Reads the cursor; the flag is true if there was one and it was damaged.
    pub(super) fn load(dir: &Path) -> Result<(Self, bool), OutboxError> {
        let path = dir.join(FILE);
        let (upto, lost) = match fs::read(&path) {
            Ok(bytes) => {
                parse_line(&bytes, |text| text.parse::<u64>().ok()).map_or((0, true), |upto| (upto, false))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => (0, false),
            Err(e) => return Err(OutboxError::io("read", &path, e)),
        };
        Ok((Self { dir: dir.to_owned(), upto }, lost))
    }

    pub(super) fn upto(&self) -> u64 {
        self.upto
    }

    /// Advances the cursor durably. A lower value has no effect.
    pub(super) fn store(&mut self, upto: u64) -> Result<(), OutboxError> {
        if upto <= self.upto {
            return Ok(());
        }
        let line = checked_line(&upto);
        durable::replace(&self.dir.join(FILE), TEMP, line.as_bytes())
            .map_err(|e| OutboxError::storage("write", &self.dir.join(TEMP), line.len() as u64, e))?;
        self.upto = upto;
        Ok(())
    }
}

/// A line of a small state file: format version, value, and the CRC-32 of the two in hex.
pub(super) fn checked_line(value: &impl fmt::Display) -> String {
    let body = format!("1 {value}");
    format!("{body} {:08x}\n", crc32fast::hash(body.as_bytes()))
}

/// The value of a [`checked_line`]; `None` for anything else.
pub(super) fn parse_line<T: fmt::Display>(bytes: &[u8], parse: impl Fn(&str) -> Option<T>) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?;
    let value = parse(text.split(' ').nth(1)?)?;
    (text == checked_line(&value)).then_some(value)
}
