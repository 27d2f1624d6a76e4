//! Which log this is, kept in the file `log`: a random id and how the last process left it.
//!
//! A sequence says something only together with the log it was given out by. A log that has lost its end will give
//! out numbers for the second time, so it becomes another log.
//!
//! One line: format version, id, state, CRC-32 of the three in hex. The state is `durable` where no acknowledged
//! event can be lost with power; otherwise `closed`, or the boot id of the machine while a process has it open.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use ulid::Ulid;

use super::config::Durability;
use super::disk::replace_file;
use super::error::OutboxError;

const FILE: &str = "log";
const TEMP: &str = "log.tmp";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const DURABLE: &str = "durable";
const CLOSED: &str = "closed";

/// The identity of one history of events. It changes when the end of that history was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId(Ulid);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_string().to_lowercase())
    }
}

/// Why a log is another one than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NewLog {
    /// The file with its id is missing, although there are segments; or it is damaged.
    IdLost,
    /// The log ends before what the consumer has committed.
    EndLost,
    /// The machine went down while events were only buffered (`os_buffered`).
    PowerLost,
}

#[derive(Debug)]
pub(super) struct Opened {
    pub(super) id: LogId,
    /// Why the id is not that of before; none for a log that has just been made, too.
    pub(super) changed: Option<NewLog>,
}

/// Reads the id, makes another one where the log is not what it was, and notes durably that it is open.
/// `last` is the last sequence in the segments, if there are any.
pub(super) fn open(
    dir: &Path,
    durability: Durability,
    last: Option<u64>,
    committed: u64,
) -> Result<Opened, OutboxError> {
    let path = dir.join(FILE);
    let known = match fs::read(&path) {
        Ok(bytes) => Some(parse(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(OutboxError::io("read", &path, e)),
    };
    let boot = fs::read_to_string(BOOT_ID).map_or_else(|_| "unknown".into(), |id| id.trim().to_owned());
    let is_new = known.is_none() && last.is_none() && committed == 0;
    let changed = match &known {
        _ if is_new => None,
        None | Some(None) => Some(NewLog::IdLost),
        Some(Some(_)) if committed > last.unwrap_or(0) => Some(NewLog::EndLost),
        Some(Some((_, state))) if ![DURABLE, CLOSED, &*boot].contains(&state.as_str()) => {
            Some(NewLog::PowerLost)
        }
        Some(Some(_)) => None,
    };
    let id = match known.flatten() {
        Some((id, _)) if changed.is_none() => id,
        _ => LogId(Ulid::generate()),
    };
    let state: &str = match durability {
        Durability::Fsync => DURABLE,
        Durability::OsBuffered => &boot,
    };
    write(dir, id, state).map_err(|e| OutboxError::storage("write", &path, 0, e))?;
    Ok(Opened { id, changed })
}

/// Notes that all events are durable now, where they were only buffered.
pub(super) fn close(dir: &Path, id: LogId, durability: Durability) -> io::Result<()> {
    match durability {
        Durability::Fsync => Ok(()),
        Durability::OsBuffered => write(dir, id, CLOSED),
    }
}

fn write(dir: &Path, id: LogId, state: &str) -> io::Result<()> {
    let line = line(id, state);
    if fs::read(dir.join(FILE)).is_ok_and(|old| old == line.as_bytes()) {
        return Ok(());
    }
    replace_file(dir, TEMP, FILE, line.as_bytes())
}

fn line(id: LogId, state: &str) -> String {
    let body = format!("1 {id} {state}");
    format!("{body} {:08x}\n", crc32fast::hash(body.as_bytes()))
}

fn parse(bytes: &[u8]) -> Option<(LogId, String)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut words = text.split(' ').skip(1);
    let id = LogId(Ulid::from_string(words.next()?).ok()?);
    let state = words.next()?;
    (text == line(id, state)).then(|| (id, state.to_owned()))
}
