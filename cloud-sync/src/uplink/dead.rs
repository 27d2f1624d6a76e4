//! Events that can never be published, stored for inspection: one line of JSON per event.
//!
//! `<dir>/events-<yyyy-mm-dd>.jsonl`, and when that is full `events-<yyyy-mm-dd>.<n>.jsonl`. Their total size is
//! limited: the oldest file is deleted first. Each line is synced to disk, because the outbox deletes the event
//! afterwards.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::durable;
use crate::outbox::StoredEvent;

#[derive(Debug)]
pub(super) struct DeadLetters {
    dir: PathBuf,
    max_bytes: u64,
    /// Whether the directory was made durable since the start.
    made: AtomicBool,
}

#[derive(Debug, Serialize)]
struct Letter<'a> {
    /// When it was rejected; RFC 3339.
    time: String,
    sequence: u64,
    /// When it was appended to the outbox.
    appended: String,
    reason: &'a str,
    payload_base64: String,
}

/// Name of a file of dead letters. Ordered by age: by day, then by number.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    day: String,
    number: u32,
}

impl DeadLetters {
    pub(super) fn new(dir: PathBuf, max_bytes: u64) -> Self {
        Self { dir, max_bytes, made: AtomicBool::new(false) }
    }

    /// Writes an event durably; returns how many letters were deleted to make space for it.
    pub(super) fn write(&self, event: &StoredEvent, reason: &str) -> io::Result<u64> {
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut line = serde_json::to_vec(&Letter {
            sequence: event.sequence,
            appended: humantime::format_rfc3339_millis(event.appended).to_string(),
            reason,
            payload_base64: STANDARD.encode(&event.payload),
            time: now.clone(),
        })?;
        line.push(b'\n');
        let day = now.get(..10).unwrap_or("undated").to_owned();
        let (dropped, mut file) = match self.open(&day, line.len() as u64) {
            // The directory does not exist yet, or was removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.made.store(false, Ordering::Relaxed);
                self.open(&day, line.len() as u64)?
            }
            opened => opened?,
        };
        let before = file.metadata()?.len();
        let mut last = [b'\n'];
        if before > 0 {
            file.read_exact_at(&mut last, before - 1)?;
        }
        if last != [b'\n'] {
            // A loss of power has torn the last line.
            line.insert(0, b'\n');
        }
        // Half a line would run into the next one.
        file.write_all(&line).inspect_err(|_| drop(file.set_len(before)))?;
        durable::sync_file(&file)?;
        // Each time: the process that created the file may have failed, or ended, before its name was durable.
        durable::sync_dir(&self.dir)?;
        Ok(dropped)
    }

    /// Opens the file for a letter of `bytes`; returns how many letters were deleted to make space for it.
    fn open(&self, day: &str, bytes: u64) -> io::Result<(u64, File)> {
        // Once: each time would sync every directory above it.
        if !self.made.load(Ordering::Relaxed) {
            durable::create_dir_all(&self.dir)?;
            self.made.store(true, Ordering::Relaxed);
        }
        let (dropped, path) = self.make_room(day, bytes)?;
        Ok((dropped, File::options().create(true).append(true).read(true).open(path)?))
    }

    /// Deletes the oldest files until `bytes` more fit, and returns the file for them.
    fn make_room(&self, day: &str, bytes: u64) -> io::Result<(u64, PathBuf)> {
        let mut files = self.list()?;
        let mut total: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        let mut dropped = 0;
        while total + bytes > self.max_bytes && !files.is_empty() {
            let (name, freed) = files.remove(0);
            let path = self.dir.join(name.file());
            dropped += fs::read(&path)?.iter().filter(|byte| **byte == b'\n').count() as u64;
            fs::remove_file(&path)?;
            total -= freed;
        }
        let newest = files.into_iter().rfind(|(name, _)| name.day == day);
        let name = match newest {
            // Deleting one file must not delete them all.
            Some((Name { day, number }, held)) if held + bytes > self.max_bytes / 4 => {
                Name { day, number: number + 1 }
            }
            Some((name, _)) => name,
            None => Name { day: day.to_owned(), number: 0 },
        };
        Ok((dropped, self.dir.join(name.file())))
    }

    /// The files with their lengths, oldest first.
    fn list(&self) -> io::Result<Vec<(Name, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Some(name) = Name::parse(&entry.path()) {
                files.push((name, entry.metadata()?.len()));
            }
        }
        files.sort();
        Ok(files)
    }
}

impl Name {
    fn parse(path: &Path) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_prefix("events-")?.strip_suffix(".jsonl")?;
        let (day, number) = match stem.split_once('.') {
            Some((day, number)) => (day, number.parse().ok()?),
            None => (stem, 0),
        };
        Some(Self { day: day.to_owned(), number })
    }

    fn file(&self) -> String {
        match self.number {
            0 => format!("events-{}.jsonl", self.day),
            number => format!("events-{}.{number}.jsonl", self.day),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::simulated::{SimulatedDisk, after_each_loss};
    use serde_json::Value;

    fn event(sequence: u64) -> StoredEvent {
        StoredEvent { sequence, appended: SystemTime::UNIX_EPOCH, payload: b"\xffnot json".to_vec() }
    }

    #[test]
    fn a_letter_has_the_event_whole_and_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::new(dir.path().join("made/for/it"), 1 << 20);
        assert_eq!(dead.write(&event(7), "not JSON").unwrap(), 0);
        assert_eq!(dead.write(&event(8), "too \"large\"\n").unwrap(), 0);
        let files = dead.list().unwrap();
        assert_eq!(files.len(), 1);
        let text = fs::read_to_string(dead.dir.join(files[0].0.file())).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["sequence"], &lines[0]["reason"]), (&7.into(), &"not JSON".into()));
        assert_eq!(lines[0]["appended"], "1970-01-01T00:00:00.000Z");
        let payload = STANDARD.decode(lines[1]["payload_base64"].as_str().unwrap()).unwrap();
        assert_eq!(payload, b"\xffnot json");
    }

    #[test]
    fn letters_are_bounded_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::new(dir.path().to_owned(), 4000);
        fs::write(dir.path().join("events-2020-01-01.jsonl"), "old\nold\nold\n").unwrap();
        fs::write(dir.path().join("other.txt"), "x".repeat(9000)).unwrap();
        let mut dropped = 0;
        for sequence in 1..=100 {
            dropped += dead.write(&event(sequence), "no").unwrap();
            let total: u64 = dead.list().unwrap().iter().map(|(_, bytes)| bytes).sum();
            assert!(total <= 4000, "{total}");
        }
        let kept: Vec<u64> = (dead.list().unwrap().iter())
            .flat_map(|(name, _)| {
                let text = fs::read_to_string(dir.path().join(name.file())).unwrap();
                let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
                lines.into_iter().map(|l| l["sequence"].as_u64().unwrap())
            })
            .collect();
        assert_eq!(kept, ((101 - kept.len() as u64)..=100).collect::<Vec<_>>());
        assert!(kept.len() > 10);
        assert_eq!(dropped, 3 + 100 - kept.len() as u64);
        assert!(dir.path().join("other.txt").exists());
    }

    #[test]
    fn a_letter_outlives_a_loss_of_power() {
        let root = tempfile::tempdir().unwrap();
        let disk = SimulatedDisk::watch(root.path());
        let dead = DeadLetters::new(root.path().join("made/for/it"), 4000);
        let count = 8;
        for sequence in 1..=count {
            assert_eq!(dead.write(&event(sequence), "no").unwrap(), 0);
            disk.acknowledge();
        }
        after_each_loss(&disk.kill_points(), |dir, acknowledged, outcome| {
            let dead = DeadLetters::new(dir.join("made/for/it"), 4000);
            // The next one is appended after whatever is there.
            dead.write(&event(99), "no").unwrap();
            let read = |(name, _): (Name, u64)| fs::read_to_string(dead.dir.join(name.file())).unwrap();
            // Each file by itself: a torn line at the end of one does not run into the next.
            let text = dead.list().unwrap().into_iter().map(read).collect::<Vec<_>>().join("\n");
            let of = |line: &str| serde_json::from_str::<Value>(line).ok()?["sequence"].as_u64();
            let found: Vec<_> = text.lines().filter_map(of).collect();
            let expected = 1..=acknowledged as u64;
            assert!(expected.clone().all(|n| found.contains(&n)), "{outcome:?}: {found:?} of {expected:?}");
            assert!(found.contains(&99), "{outcome:?}: {text:?}");
        });
    }

    #[test]
    fn the_folder_is_made_durable_once_and_once_more_when_it_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let disk = SimulatedDisk::watch(root.path());
        let dead = DeadLetters::new(root.path().join("made/for/it"), 1 << 20);
        dead.write(&event(1), "no").unwrap();
        let first = disk.kill_points().len();
        dead.write(&event(2), "no").unwrap();
        // The fsyncs of the file and its folder, and now.
        assert_eq!(disk.kill_points().len(), 3);
        fs::remove_dir_all(root.path().join("made")).unwrap();
        dead.write(&event(3), "no").unwrap();
        assert_eq!(disk.kill_points().len(), first);
        assert_eq!(dead.list().unwrap().len(), 1);
    }

    #[test]
    fn a_full_disk_leaves_no_half_letter() {
        // The device accepts no byte.
        let dir = tempfile::tempdir().unwrap();
        let dead = DeadLetters::new(dir.path().to_owned(), 1 << 20);
        let day = &humantime::format_rfc3339_seconds(SystemTime::now()).to_string()[..10];
        std::os::unix::fs::symlink("/dev/full", dir.path().join(format!("events-{day}.jsonl"))).unwrap();
        let error = dead.write(&event(1), "no").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
