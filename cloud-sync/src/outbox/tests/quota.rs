//! Bulk events keep to their share of the outbox, and never cause the deletion of another event.

use std::path::Path;

use tempfile::{TempDir, tempdir};

use super::faults::{Faults, open};
use crate::outbox::{BulkRoom, Outbox, OutboxConfig, OutboxError, Reader, WhenFull};

const MAX_BYTES: u64 = 1 << 20;
/// A record of 1024 bytes.
const PAYLOAD: usize = 1000;
const BOTH: [WhenFull; 2] = [WhenFull::Refuse, WhenFull::DropOldest];

fn config(dir: &TempDir, when_full: WhenFull) -> OutboxConfig {
    OutboxConfig {
        max_bytes: MAX_BYTES,
        segment_bytes: 64 << 10,
        when_full,
        has_consumer: true,
        ..OutboxConfig::new(dir.path())
    }
}

fn bulk(outbox: &Outbox) -> Result<u64, OutboxError> {
    let mut room = outbox.bulk_room([PAYLOAD], &mut None)?;
    outbox.append_bulk(vec![b'b'; PAYLOAD], &mut room).wait()
}

fn other(outbox: &Outbox) -> Result<u64, OutboxError> {
    outbox.append(vec![b'o'; PAYLOAD]).wait()
}

/// Appends bulk events until there is no space, and returns how many.
fn flood(outbox: &Outbox) -> u64 {
    for count in 0.. {
        match bulk(outbox) {
            Ok(_) => assert!(count < 2000, "bulk events are not bounded"),
            Err(OutboxError::BulkBound { .. }) => return count,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!()
}

/// Number of events whose payload begins with `kind`.
fn count(dir: &Path, kind: u8) -> u64 {
    Reader::open(dir).unwrap().filter(|event| event.as_ref().unwrap().payload[0] == kind).count() as u64
}

#[test]
fn a_flood_of_bulk_events_leaves_the_rest_of_the_outbox_to_others_also_after_a_restart() {
    for when_full in BOTH {
        let dir = tempdir().unwrap();
        let outbox = Outbox::open(config(&dir, when_full)).unwrap().0;
        for _ in 0..100 {
            other(&outbox).unwrap();
        }
        let flooded = flood(&outbox);
        assert!((500..=512).contains(&flooded), "{flooded}");
        let used = outbox.stats().bulk_bytes;
        assert_eq!(used, flooded * 1024);

        // Not closed cleanly: the counts come from the segments alone.
        let copy = tempdir().unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        drop(outbox);
        let outbox = Outbox::open(config(&copy, when_full)).unwrap().0;
        assert_eq!(outbox.stats().bulk_bytes, used);
        assert_eq!(flood(&outbox), 0);
        for _ in 0..250 {
            other(&outbox).unwrap();
        }
        assert_eq!((count(copy.path(), b'o'), count(copy.path(), b'b')), (350, flooded));
        assert_eq!((outbox.stats().dropped_by_size, outbox.stats().error), (0, None));

        // Sent events free space, in part and as a whole.
        outbox.commit(100 + flooded / 2).unwrap();
        let more = flood(&outbox);
        assert!((flooded / 2 - 4..=flooded / 2).contains(&more), "{more} of {flooded}");
        outbox.commit(outbox.last_sequence()).unwrap();
        assert_eq!(outbox.stats().bulk_bytes, 0);
        assert!(flood(&outbox) >= 500);
        assert_eq!(outbox.stats().dropped_by_size, 0);
    }
}

#[test]
fn others_that_fill_the_outbox_are_not_deleted_for_bulk_events() {
    for when_full in BOTH {
        let dir = tempdir().unwrap();
        let outbox = Outbox::open(config(&dir, when_full)).unwrap().0;
        let mut room = outbox.bulk_room([PAYLOAD; 4], &mut None).unwrap();
        let mut filled = 0;
        while outbox.stats().bytes <= MAX_BYTES - 5 * 1024 - 24 {
            other(&outbox).unwrap();
            filled += 1;
        }
        let error = bulk(&outbox).unwrap_err();
        assert!(matches!(error, OutboxError::Bound { .. }), "{error}");
        // Reserved space is kept free.
        for _ in 0..4 {
            outbox.append_bulk(vec![b'b'; PAYLOAD], &mut room).wait().unwrap();
        }
        assert_eq!((count(dir.path(), b'o'), outbox.stats().dropped_by_size), (filled, 0));
        // Other events follow their policy.
        let next = (0..100).map(|_| other(&outbox)).find(Result::is_err);
        assert_eq!(next.is_none(), when_full == WhenFull::DropOldest);
    }
}

#[test]
fn on_a_full_disk_no_event_is_deleted_for_bulk_events() {
    let dir = tempdir().unwrap();
    let faults = Faults::scripted([]);
    let outbox = open(&config(&dir, WhenFull::DropOldest), &faults).unwrap().0;
    for _ in 0..300 {
        other(&outbox).unwrap();
    }
    faults.set_full(true);
    for _ in 0..3 {
        let error = bulk(&outbox).unwrap_err();
        assert!(matches!(error, OutboxError::Full { .. }), "{error}");
    }
    assert_eq!((outbox.stats().dropped_by_size, count(dir.path(), b'o')), (0, 300));
    assert_eq!(outbox.stats().bulk_bytes, 0, "what was not written takes no room");
    assert!(other(&outbox).is_err());
    assert!(outbox.stats().dropped_by_size > 0, "an event goes for another one");
    faults.set_full(false);
    bulk(&outbox).unwrap();
}

#[test]
fn room_that_is_not_used_is_given_back_and_too_much_at_once_has_all_there_is() {
    let dir = tempdir().unwrap();
    let outbox = Outbox::open(config(&dir, WhenFull::Refuse)).unwrap().0;
    let whole = |count| outbox.bulk_room(std::iter::repeat_n(PAYLOAD, count), &mut None);
    let half: BulkRoom = whole(256).unwrap();
    assert!(whole(300).is_err());
    drop(half);
    let mut all = whole(5000).unwrap();
    let error = bulk(&outbox).unwrap_err();
    assert!(error.is_full() && error.to_string().contains("of 524250 bytes"), "{error}");
    outbox.append_bulk(vec![b'b'; PAYLOAD], &mut all).wait().unwrap();
    // A started job has space for its rest, however large it is.
    drop(outbox.bulk_room_for_rest([PAYLOAD; 3]));
    drop(all);
    assert_eq!(outbox.stats().bulk_bytes, 1024);
    bulk(&outbox).unwrap();
}

#[test]
fn what_is_more_than_the_share_has_room_only_as_events_are_sent() {
    for when_full in BOTH {
        let dir = tempdir().unwrap();
        let outbox = Outbox::open(config(&dir, when_full)).unwrap().0;
        let mut room = outbox.bulk_room([PAYLOAD; 900], &mut None).unwrap();
        let mut append = || outbox.append_bulk(vec![b'b'; PAYLOAD], &mut room).wait();
        let first = (0..900).take_while(|_| append().is_ok()).count();
        assert!((500..=512).contains(&first), "{first}");
        let error = append().unwrap_err();
        assert!(matches!(error, OutboxError::BulkBound { .. }), "{error}");
        for _ in 0..400 {
            other(&outbox).unwrap();
        }
        assert_eq!(outbox.stats().dropped_by_size, 0);
        outbox.commit(outbox.last_sequence()).unwrap();
        drop(room);
        let mut room = outbox.bulk_room_for_rest([PAYLOAD; 400]);
        for _ in 0..400 {
            outbox.append_bulk(vec![b'b'; PAYLOAD], &mut room).wait().unwrap();
        }
    }
}

#[test]
fn one_event_that_is_larger_than_the_share_goes_alone() {
    let dir = tempdir().unwrap();
    let small = OutboxConfig { bulk_share: 1, ..config(&dir, WhenFull::Refuse) };
    let outbox = Outbox::open(small).unwrap().0;
    for _ in 0..3 {
        let mut room = outbox.bulk_room([20_000; 2], &mut None).unwrap();
        outbox.append_bulk(vec![b'b'; 20_000], &mut room).wait().unwrap();
        let error = outbox.append_bulk(vec![b'b'; 20_000], &mut room).wait().unwrap_err();
        assert!(matches!(error, OutboxError::BulkBound { .. }), "{error}");
        outbox.commit(outbox.last_sequence()).unwrap();
    }
}

#[test]
fn who_waits_for_room_comes_before_those_who_come_later() {
    let dir = tempdir().unwrap();
    let outbox = Outbox::open(config(&dir, WhenFull::Refuse)).unwrap().0;
    flood(&outbox);
    let mut ticket = None;
    let large = |ticket: &mut _| outbox.bulk_room([PAYLOAD; 400], ticket);
    assert!(large(&mut ticket).is_err() && ticket.is_some());
    // Space for a few, reserved for the ticket.
    outbox.commit(200).unwrap();
    assert!(large(&mut ticket).is_err());
    let error = bulk(&outbox).unwrap_err();
    assert!(matches!(error, OutboxError::BulkBound { .. }), "{error}");
    outbox.commit(450).unwrap();
    drop(large(&mut ticket).unwrap());
    assert!(ticket.is_none());
    bulk(&outbox).unwrap();
    // A dropped ticket leaves the queue.
    assert!(outbox.bulk_room([PAYLOAD; 510], &mut ticket).is_err());
    assert!(bulk(&outbox).is_err());
    drop(ticket);
    bulk(&outbox).unwrap();
}

#[test]
fn a_closed_segment_whose_events_were_sent_is_not_in_the_way() {
    let dir = tempdir().unwrap();
    let outbox = Outbox::open(OutboxConfig { segment_bytes: 256 << 10, ..config(&dir, WhenFull::Refuse) });
    let outbox = outbox.unwrap().0;
    for _ in 0..200 {
        other(&outbox).unwrap();
    }
    outbox.commit(200).unwrap();
    drop(outbox);
    let reduced = OutboxConfig { max_bytes: 64 << 10, ..config(&dir, WhenFull::Refuse) };
    let outbox = Outbox::open(reduced).unwrap().0;
    bulk(&outbox).unwrap();
}

#[test]
fn without_a_consumer_the_oldest_go_for_bulk_events_too_or_these_are_refused() {
    let dir = tempdir().unwrap();
    let ring = OutboxConfig { has_consumer: false, ..config(&dir, WhenFull::DropOldest) };
    let outbox = Outbox::open(ring).unwrap().0;
    for _ in 0..1500 {
        bulk(&outbox).unwrap();
    }
    assert!(outbox.stats().dropped_by_size > 0);
    let dir = tempdir().unwrap();
    let refusing = OutboxConfig { has_consumer: false, ..config(&dir, WhenFull::Refuse) };
    let outbox = Outbox::open(refusing).unwrap().0;
    assert!(flood(&outbox) <= 512);
    other(&outbox).unwrap();
}

#[test]
fn a_share_that_is_out_of_bounds_is_refused() {
    for bulk_share in [0, 71, 100] {
        let dir = tempdir().unwrap();
        let wrong = OutboxConfig { bulk_share, ..config(&dir, WhenFull::Refuse) };
        let error = Outbox::open(wrong).unwrap_err().to_string();
        assert!(error.contains("bulk_share") && error.contains("1 to 70"), "{error}");
    }
}
