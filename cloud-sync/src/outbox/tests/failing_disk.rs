//! Disks that are full or broken: what callers get, and segments that cannot be read, which are never skipped and whose
//! sequences are never given out again.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::{TempDir, tempdir};

use super::faults::{Fault, Faults, fail_reads, open};
use crate::outbox::{Outbox, OutboxConfig, OutboxError, Reader, WhenFull, segment};

const FULL: Fault = Fault::NoSpace { percent: 60 };
const BROKEN: Fault = Fault::Broken { percent: 60 };

struct Rig {
    _dir: tempfile::TempDir,
    config: OutboxConfig,
    faults: Arc<Faults>,
    outbox: Outbox,
}

fn rig(when_full: WhenFull) -> Rig {
    let dir = tempdir().unwrap();
    let config =
        OutboxConfig { max_bytes: 1 << 20, segment_bytes: 4096, when_full, ..OutboxConfig::new(dir.path()) };
    let faults = Faults::scripted([]);
    let outbox = open(&config, &faults).unwrap().0;
    Rig { _dir: dir, config, faults, outbox }
}

impl Rig {
    fn append(&self, text: &str) -> Result<u64, OutboxError> {
        self.outbox.append(text.into()).wait()
    }

    fn read(&self) -> Vec<String> {
        let reader = Reader::open(&self.config.dir).unwrap();
        reader.map(|event| String::from_utf8(event.unwrap().payload).unwrap()).collect()
    }

    fn reopened(self) -> Vec<String> {
        self.outbox.close().unwrap();
        let found = Outbox::open(self.config.clone()).unwrap().1;
        assert_eq!(found.damaged, []);
        self.read()
    }
}

#[test]
fn a_full_disk_fails_its_own_append_by_name_and_no_later_one() {
    let rig = rig(WhenFull::Refuse);
    rig.append("one").unwrap();
    rig.faults.fail_in(0, FULL);
    let error = rig.append("two").unwrap_err();
    assert!(error.is_full());
    let OutboxError::Full { path, needed, .. } = &error else { panic!("{error:?}") };
    assert!(path.starts_with(&rig.config.dir));
    assert_eq!(*needed, 27);
    let stats = rig.outbox.stats();
    assert_eq!((stats.failed, stats.appended, stats.last_sequence), (1, 1, 1));
    assert!(stats.error.unwrap().contains("no space to write"));
    assert_eq!(rig.append("three").unwrap(), 3);
    assert_eq!(rig.outbox.stats().error, None);
    assert_eq!(rig.read(), ["one", "three"]);
    assert_eq!(rig.reopened(), ["one", "three"]);
}

#[test]
fn a_disk_that_stays_full_leaves_no_files_behind() {
    let rig = rig(WhenFull::Refuse);
    rig.append("one").unwrap();
    rig.faults.set_full(true);
    for _ in 0..20 {
        assert!(rig.append("no").unwrap_err().is_full());
    }
    let stats = rig.outbox.stats();
    assert_eq!((stats.segments, stats.failed), (1, 20));
    rig.faults.set_full(false);
    rig.append("two").unwrap();
    assert_eq!(rig.outbox.stats().segments, 2);
    assert_eq!(rig.reopened(), ["one", "two"]);
}

#[test]
fn a_full_disk_makes_room_from_the_oldest_events_when_told_so() {
    let rig = rig(WhenFull::DropOldest);
    for n in 0..6 {
        rig.append(&format!("{n}{}", "-".repeat(1900))).unwrap();
    }
    let before = rig.outbox.stats();
    assert!(before.segments >= 3, "{before:?}");
    rig.faults.fail_in(0, FULL);
    assert_eq!(rig.append("new").unwrap(), 7);
    let after = rig.outbox.stats();
    assert_eq!((after.failed, after.segments, after.appended), (0, before.segments - 1, 7));
    assert!(after.dropped_by_size > 0);
    assert_eq!(after.events + after.dropped_by_size, 7);
    // Where deleting does not help, it is not repeated.
    rig.faults.set_full(true);
    for _ in 0..10 {
        assert!(rig.append("no").unwrap_err().is_full());
    }
    assert_eq!(rig.outbox.stats().segments, after.segments - 1);
    assert_eq!(rig.read().last().unwrap(), "new");
    rig.faults.set_full(false);
    rig.append("newer").unwrap();
    assert_eq!(rig.read().last().unwrap(), "newer");
}

#[test]
fn a_full_disk_makes_room_from_what_is_sent_whatever_the_policy() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest] {
        let rig = rig(when_full);
        for n in 0..6 {
            rig.append(&format!("{n}{}", "-".repeat(1900))).unwrap();
        }
        let before = rig.outbox.stats();
        assert!(before.segments >= 3, "{before:?}");
        rig.outbox.commit(4).unwrap();
        rig.faults.fail_in(0, FULL);
        assert_eq!(rig.append("new").unwrap(), 7);
        let after = rig.outbox.stats();
        assert_eq!((after.failed, after.dropped_by_size), (0, 0), "nothing is lost that was not sent");
        assert_eq!(after.segments, before.segments - 1);
    }
}

#[test]
fn a_failed_fsync_is_never_tried_again_on_the_same_segment() {
    let rig = rig(WhenFull::DropOldest);
    rig.append("one").unwrap();
    rig.faults.fail_in(1, Fault::Lost);
    let error = rig.append("two").unwrap_err();
    assert!(matches!(&error, OutboxError::Io { action: "sync", .. }), "{error:?}");
    assert_eq!(rig.append("three").unwrap(), 3);
    assert_eq!(rig.outbox.stats().segments, 2);
    assert_eq!(rig.read(), ["one", "three"]);
    assert_eq!(rig.reopened(), ["one", "three"]);
}

#[test]
fn a_segment_whose_creation_is_not_durable_is_not_acknowledged_from() {
    let rig = rig(WhenFull::DropOldest);
    // After the creation, the write, the zeros and their sync: the sync of the directory.
    rig.faults.fail_in(4, BROKEN);
    let error = rig.append("one").unwrap_err();
    assert!(matches!(&error, OutboxError::Io { action: "sync", .. }), "{error:?}");
    assert_eq!(rig.outbox.stats().segments, 0);
    assert_eq!(rig.append("two").unwrap(), 2);
    assert_eq!(rig.reopened(), ["two"]);
}

#[test]
fn a_cut_that_fails_after_a_short_write_leaves_what_was_acknowledged() {
    let rig = rig(WhenFull::DropOldest);
    rig.append("one").unwrap();
    rig.faults.fail_in(0, BROKEN);
    rig.faults.fail_in(1, BROKEN);
    assert!(matches!(rig.append("two").unwrap_err(), OutboxError::Io { action: "write", .. }));
    assert_eq!(rig.append("three").unwrap(), 3);
    assert_eq!(rig.read(), ["one", "three"]);
    rig.outbox.close().unwrap();
    let found = Outbox::open(rig.config.clone()).unwrap().1;
    assert_eq!((found.events, found.damaged.len()), (2, 1));
    assert_eq!(rig.read(), ["one", "three"]);
}

const ALWAYS: u32 = u32::MAX;

/// Twelve events in segments of four; the last is open and has been closed cleanly.
fn filled() -> (TempDir, OutboxConfig) {
    let dir = tempdir().unwrap();
    let config = OutboxConfig { max_bytes: 1 << 20, segment_bytes: 4096, ..OutboxConfig::new(dir.path()) };
    let (outbox, _) = Outbox::open(config.clone()).unwrap();
    for _ in 0..12 {
        outbox.append(vec![b'.'; 900]).wait().unwrap();
    }
    drop(outbox);
    (dir, config)
}

fn segments(dir: &Path) -> Vec<u64> {
    segment::list(dir).unwrap()
}

/// The offset of the third record of a segment.
const THIRD: u64 = segment::HEADER_LEN + 2 * (900 + 24);

#[test]
fn a_reader_stays_in_front_of_what_the_disk_does_not_read() {
    let (dir, _) = filled();
    let second = segments(dir.path())[1];
    for first in [segments(dir.path())[0], second] {
        let path = segment::path(dir.path(), first);
        for offset in [0, THIRD] {
            let mut reader = Reader::open(dir.path()).unwrap();
            fail_reads(&path, offset, 5);
            let (mut read, mut errors) = (Vec::new(), 0);
            loop {
                match reader.try_next() {
                    Ok(Some(event)) => read.push(event.sequence),
                    Ok(None) => break,
                    Err(error) => {
                        assert!(matches!(error, OutboxError::Io { action: "read", .. }), "{error:?}");
                        errors += 1;
                    }
                }
            }
            assert_eq!(read, (1..=12).collect::<Vec<_>>(), "segment {first}, offset {offset}");
            assert!(errors > 0);
        }
    }
}

#[test]
fn a_read_that_fails_for_a_moment_during_recovery_changes_nothing() {
    let (dir, config) = filled();
    for first in segments(dir.path()) {
        fail_reads(&segment::path(dir.path(), first), THIRD, 1);
    }
    let (outbox, found) = Outbox::open(config).unwrap();
    assert_eq!((found.damaged, found.events, found.last_sequence), (vec![], 12, 12));
    assert_eq!(outbox.append(b"next".to_vec()).wait().unwrap(), 13);
}

#[test]
fn no_number_of_a_segment_that_stays_unreadable_is_given_out_again() {
    for index in 0..segments(filled().0.path()).len() {
        for offset in [0, THIRD] {
            let (dir, config) = filled();
            let path = segment::path(dir.path(), segments(dir.path())[index]);
            let before = fs::read(&path).unwrap();
            fail_reads(&path, offset, ALWAYS);
            let (outbox, found) = Outbox::open(config.clone()).unwrap();
            assert!(!found.damaged.is_empty());
            assert!(outbox.append(b"next".to_vec()).wait().unwrap() > 12, "segment {index}, offset {offset}");
            drop(outbox);
            assert_eq!(fs::read(&path).unwrap(), before, "it is left as it is");
            // The disk has recovered: everything is there.
            fail_reads(&path, offset, 0);
            let (_outbox, found) = Outbox::open(config).unwrap();
            assert_eq!((found.damaged.len(), found.events), (0, 13));
        }
    }
}
