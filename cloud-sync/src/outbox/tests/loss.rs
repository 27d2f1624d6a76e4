//! Lost writes: opening reports a lost end, and a power failure at any moment loses nothing that was acknowledged:
//! events, the cursor, which opening gave out which sequences.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tempfile::tempdir;

use crate::durable::simulated::{SimulatedDisk, after_each_loss};
use crate::outbox::{Durability, Epochs, LostEnd, Outbox, OutboxConfig, Reader, WhenFull};

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
    // Also if the configuration has changed meanwhile.
    let (outbox, found) = Outbox::open(OutboxConfig::new(dir.path())).unwrap();
    assert_eq!(found.lost_end, Some(LostEnd::PowerLost));
    drop(outbox);
    assert_eq!(Outbox::open(config).unwrap().1.lost_end, None);
}

/// What the outbox has acknowledged.
enum Promise {
    Event { sequence: u64, payload: Vec<u8>, epochs: Epochs },
    Committed(u64),
}

fn config(root: &std::path::Path) -> OutboxConfig {
    OutboxConfig {
        segment_bytes: 4 << 10,
        max_bytes: 64 << 10,
        when_full: WhenFull::Refuse,
        has_consumer: true,
        ..OutboxConfig::new(root.join("data/outbox"))
    }
}

#[test]
fn what_was_acknowledged_outlives_a_loss_of_power_at_any_moment() {
    let root = tempdir().unwrap();
    let disk = SimulatedDisk::watch(root.path());
    let mut promises = Vec::new();
    for opening in 0..4_u8 {
        let outbox = Outbox::open(config(root.path())).unwrap().0;
        for n in 0..9_u8 {
            // Occasionally one that needs a segment of its own.
            let payload = vec![opening * 16 + n; if n % 4 == 3 { 1900 } else { 200 }];
            let sequence = outbox.append(payload.clone()).wait().unwrap();
            promises.push(Promise::Event { sequence, payload, epochs: outbox.epochs().upto(sequence) });
            disk.acknowledge();
            if n % 3 == 2 {
                outbox.commit(sequence - 1).unwrap();
                promises.push(Promise::Committed(sequence - 1));
                disk.acknowledge();
            }
        }
    }
    let mut checked = 0;
    after_each_loss(&disk.kill_points(), |dir, acknowledged, outcome| {
        let outbox = Outbox::open(config(dir)).unwrap().0;
        let read = || Reader::open(outbox.dir()).unwrap().map(Result::unwrap);
        let events: BTreeMap<_, _> = read().map(|event| (event.sequence, event.payload)).collect();
        assert_eq!(events.len(), read().count());
        let last = outbox.last_sequence();
        for promise in &promises[..acknowledged] {
            match promise {
                Promise::Committed(upto) => assert!(outbox.committed() >= *upto, "{outcome:?}"),
                Promise::Event { sequence, payload, epochs } => {
                    assert_eq!(events.get(sequence), Some(payload), "{outcome:?} after {acknowledged}");
                    let common = outbox.epochs().common(last, epochs, *sequence);
                    assert_eq!(common, *sequence, "{outcome:?}: taken for another history");
                }
            }
        }
        assert!(outbox.committed() <= last);
        assert!(outbox.append(b"next".to_vec()).wait().unwrap() > events.keys().last().copied().unwrap_or(0));
        checked += 1;
    });
    assert!(checked > 300, "{checked}");
}
