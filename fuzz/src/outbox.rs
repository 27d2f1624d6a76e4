//! Segments of the outbox: for any content, opening accepts no event that was not written, loses no intact one, and continues
//! after all of them.
//!
//! An input that begins as a segment is one. Any other is a list of steps that write segments, with valid checksums, and damage
//! them.

mod steps;

use std::path::Path;

use cloud_sync::outbox::{Durability, Outbox, OutboxConfig, OutboxError, Reader, Recovery, StoredEvent};

use crate::harness::temp_folder;
use steps::Written;

/// Bytes before the payload of a record.
const RECORD_HEADER: usize = 24;
/// Bytes before the first record of a segment.
const SEGMENT_HEADER: usize = 24;
const MAGIC: &[u8] = b"WEIROBX\0";

/// Checks the property.
pub fn check(input: &[u8]) {
    let written = if input.starts_with(MAGIC) { Written::raw(input) } else { Written::by_steps(input) };
    let folder = temp_folder();
    let dir = folder.path();
    written.write(dir);

    let before = read(dir);
    let Some((outbox, report)) = open(dir, written.durability) else {
        return assert!(written.has_newer_version(), "a version is newer that no segment has");
    };
    let Some(before) = before else { return };
    assert!(before.windows(2).all(|pair| pair[0].sequence < pair[1].sequence), "sequences do not rise");
    for event in &before {
        assert!(written.holds(&record(event)), "event {} was never written", event.sequence);
    }
    if let Some(expected) = &written.sound {
        let found: Vec<_> = before.iter().map(|event| (event.sequence, event.payload.clone())).collect();
        assert_eq!(&found, expected, "events of whole segments are lost");
        assert_eq!((report.damaged.len(), report.truncated_bytes), (0, 0), "{report:?}");
    }
    assert!(report.last_sequence >= before.last().map_or(0, |event| event.sequence), "{report:?}");
    assert_eq!(read(dir).as_ref(), Some(&before), "opening changes what is read");

    let Some(added) = append(&outbox, &written, &before, &report) else { return };
    outbox.close().expect("an outbox that closes");
    let after = [&before[..], &added].concat();
    assert_eq!(
        read(dir).as_deref().map(sequences),
        Some(sequences(&after)),
        "events are gone after appending"
    );
    let (again, report) = open(dir, written.durability).expect("an outbox that opens again");
    assert_eq!(
        read(dir).as_deref().map(sequences),
        Some(sequences(&after)),
        "events are gone after opening again"
    );
    assert_eq!(report.truncated_bytes, 0, "what was acknowledged is cut off: {report:?}");
    again.close().expect("an outbox that closes");
}

fn sequences(events: &[StoredEvent]) -> Vec<(u64, &[u8])> {
    events.iter().map(|event| (event.sequence, &event.payload[..])).collect()
}

/// All events; `None` if a segment has a newer version.
fn read(dir: &Path) -> Option<Vec<StoredEvent>> {
    let mut reader = Reader::open(dir).expect("a directory that is listed");
    let mut events = Vec::new();
    loop {
        match reader.try_next() {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return Some(events),
            Err(OutboxError::Version { .. }) => return None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// `None` if a segment has a newer version.
fn open(dir: &Path, durability: Durability) -> Option<(Outbox, Recovery)> {
    let config = OutboxConfig { segment_bytes: 4 << 10, durability, ..OutboxConfig::new(dir) };
    match Outbox::open(config) {
        Ok(opened) => Some(opened),
        Err(OutboxError::Version { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Appends events after the existing ones; `None` if no sequence number is left.
fn append(
    outbox: &Outbox,
    written: &Written,
    before: &[StoredEvent],
    report: &Recovery,
) -> Option<Vec<StoredEvent>> {
    let mut last = report.last_sequence.max(outbox.committed());
    let mut added = Vec::new();
    for payload in [&b"one"[..], b"", &[7; 1500], b"three"] {
        match outbox.append(payload.to_vec()).wait() {
            Ok(sequence) => {
                assert!(sequence > last, "number {sequence} is given out again, behind {last}");
                last = sequence;
                let event =
                    StoredEvent { sequence, appended: std::time::UNIX_EPOCH, payload: payload.to_vec() };
                added.push(event);
            }
            Err(error) => {
                // Segments are named after numbers, so the last of them leaves no room for further ones.
                let numbers = written.names().chain(before.iter().map(|event| event.sequence)).chain([last]);
                let exhausted = numbers.max() >= Some(u64::MAX - 8);
                assert!(
                    exhausted && matches!(error, OutboxError::Exhausted { .. }),
                    "an event is not taken: {error}"
                );
                return None;
            }
        }
    }
    Some(added)
}

/// The bytes of an event on disk, from the description of the format.
fn record(event: &StoredEvent) -> Vec<u8> {
    let since = event.appended.duration_since(std::time::UNIX_EPOCH).expect("a time after 1970");
    encode(event.sequence, u64::try_from(since.as_millis()).expect("milliseconds"), &event.payload)
}

fn encode(sequence: u64, unix_ms: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_le_bytes();
    let (sequence, unix_ms) = (sequence.to_le_bytes(), unix_ms.to_le_bytes());
    let sum = crc32fast::hash(&[&length[..], &sequence, &unix_ms, payload].concat()).to_le_bytes();
    [&length[..], &sum, &sequence, &unix_ms, payload].concat()
}
