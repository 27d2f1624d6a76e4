//! A log that lost its end says so when it is opened.

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use crate::outbox::{Durability, LostEnd, Outbox, OutboxConfig};

fn put(outbox: &Outbox, text: &str) -> u64 {
    outbox.append(text.into()).wait().unwrap()
}

fn remove_segments(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().extension().is_some_and(|e| e == "seg") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn a_log_that_was_closed_in_good_order_has_lost_nothing() {
    for durability in [Durability::Fsync, Durability::OsBuffered] {
        let dir = tempdir().unwrap();
        let config = OutboxConfig { durability, ..OutboxConfig::new(dir.path()) };
        for n in 1..=3 {
            let (outbox, found) = Outbox::open(config.clone()).unwrap();
            assert_eq!(found.lost_end, None);
            assert_eq!(put(&outbox, "one"), n);
            outbox.commit(n).unwrap();
        }
    }
}

#[test]
fn an_end_before_the_cursor_is_reported_and_its_numbers_are_not_used_again() {
    let dir = tempdir().unwrap();
    let config = OutboxConfig::new(dir.path());
    let (outbox, _) = Outbox::open(config.clone()).unwrap();
    put(&outbox, "one");
    put(&outbox, "two");
    outbox.commit(2).unwrap();
    drop(outbox);
    remove_segments(dir.path());
    let (outbox, found) = Outbox::open(config.clone()).unwrap();
    assert_eq!(found.lost_end, Some(LostEnd::BeforeCursor));
    assert_eq!(put(&outbox, "three"), 3);
    drop(outbox);
    assert_eq!(Outbox::open(config).unwrap().1.lost_end, None);
}

#[test]
fn power_that_fails_while_events_are_only_buffered_is_reported() {
    let dir = tempdir().unwrap();
    let config = OutboxConfig { durability: Durability::OsBuffered, ..OutboxConfig::new(dir.path()) };
    let (outbox, _) = Outbox::open(config.clone()).unwrap();
    put(&outbox, "one");
    // The process ends without closing: first on the same boot of the machine, then on another.
    let boot = fs::read(dir.path().join("open")).unwrap();
    drop(outbox);
    assert!(!dir.path().join("open").exists());
    fs::write(dir.path().join("open"), boot).unwrap();
    let (outbox, found) = Outbox::open(config.clone()).unwrap();
    assert_eq!(found.lost_end, None);
    drop(outbox);
    fs::write(dir.path().join("open"), "00000000-0000-0000-0000-000000000000\n").unwrap();
    // Also where the configuration is another meanwhile.
    let (outbox, found) = Outbox::open(OutboxConfig::new(dir.path())).unwrap();
    assert_eq!(found.lost_end, Some(LostEnd::PowerLost));
    drop(outbox);
    assert_eq!(Outbox::open(config).unwrap().1.lost_end, None);
}
