//! What the disk does not read is never passed over, and its numbers are never given out again.

use std::fs;
use std::path::Path;

use tempfile::{TempDir, tempdir};

use super::faults::fail_reads;
use crate::outbox::{Outbox, OutboxConfig, OutboxError, Reader, segment};

const ALWAYS: u32 = u32::MAX;

/// Twelve events in segments of four; the last is open and has been closed in good order.
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
