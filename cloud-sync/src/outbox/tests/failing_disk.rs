//! What callers see of a disk that is full or broken, case by case.

use std::sync::Arc;

use tempfile::tempdir;

use super::faults::{Fault, Faults, open};
use crate::outbox::{Outbox, OutboxConfig, OutboxError, Reader, WhenFull};

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
    // Where deleting does not help, it is not done again and again.
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
    // Behind the creation, the write, the zeros and their sync: the sync of the directory.
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
