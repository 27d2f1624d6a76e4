//! Torn tails and flipped bits at every byte, and the highest sequences.

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use crate::outbox::cursor::Cursor;
use crate::outbox::{Durability, Outbox, OutboxConfig, OutboxError, Reader, Recovery, record, segment};

fn config(dir: &Path) -> OutboxConfig {
    OutboxConfig { durability: Durability::OsBuffered, ..OutboxConfig::new(dir) }
}

fn payload(sequence: u64) -> Vec<u8> {
    format!("event {sequence}").into_bytes()
}

/// A segment with the events `first..first + count`, and where each of them starts.
fn bytes(first: u64, count: u64) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = segment::header(first).to_vec();
    let mut starts = Vec::new();
    for sequence in first..first + count {
        starts.push(bytes.len());
        record::encode(sequence, 1_700_000_000_000 + sequence, false, &payload(sequence), &mut bytes);
    }
    (bytes, starts)
}

fn read(dir: &Path) -> Vec<u64> {
    let mut reader = Reader::open(dir).unwrap();
    let events: Vec<_> = reader.by_ref().collect::<Result<_, _>>().unwrap();
    for event in &events {
        assert_eq!(event.payload, payload(event.sequence));
    }
    events.into_iter().map(|event| event.sequence).collect()
}

fn open(dir: &Path) -> (Outbox, Recovery) {
    // Events of 2023 must not be deleted for their age here.
    Outbox::open(OutboxConfig { max_age: std::time::Duration::from_secs(1 << 40), ..config(dir) }).unwrap()
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_the_rest_is_there() {
    let (whole, starts) = bytes(1, 4);
    let cases = (0..whole.len()).flat_map(|cut| [0, 1, 25, 5000].map(|zeros| (cut, zeros)));
    for (cut, zeros) in cases {
        let dir = tempdir().unwrap();
        let torn = [&whole[..cut], &vec![0; zeros]].concat();
        fs::write(segment::path(dir.path(), 1), &torn).unwrap();
        let complete = starts.iter().skip(1).filter(|start| **start <= cut).count() as u64;
        let events: Vec<u64> = (1..=complete).collect();
        assert_eq!(read(dir.path()), events, "before recovery, cut at {cut}");
        let mut follower = Reader::open(dir.path()).unwrap();
        assert_eq!(follower.by_ref().count() as u64, complete);

        let (outbox, found) = open(dir.path());
        // Zeros may replace what was cut off the header.
        let whole_header = cut >= starts[0] || torn.starts_with(&whole[..starts[0]]);
        let end = if whole_header { starts[complete as usize] } else { 0 };
        let last = torn.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        // Every byte of a partial header counts, and zeros after the last byte never do.
        let lost = if whole_header { last.saturating_sub(end) } else { torn.len().min(starts[0]).max(last) };
        assert_eq!(found.events, complete, "cut at {cut}");
        assert_eq!(found.truncated_bytes, lost as u64, "cut at {cut}, {zeros} zeros");
        assert_eq!(found.damaged, [], "cut at {cut}");
        assert_eq!(fs::metadata(segment::path(dir.path(), 1)).unwrap().len(), end as u64, "cut at {cut}");
        assert_eq!(outbox.append(payload(complete + 1)).wait().unwrap(), complete + 1);
        assert_eq!(follower.next().unwrap().unwrap().payload, payload(complete + 1), "cut at {cut}");
        outbox.close().unwrap();
        assert_eq!(read(dir.path()), (1..=complete + 1).collect::<Vec<_>>(), "cut at {cut}");
    }
}

#[test]
fn zeros_behind_the_last_record_are_no_torn_tail() {
    let dir = tempdir().unwrap();
    let (mut whole, _) = bytes(1, 3);
    whole.resize(whole.len() + 5000, 0);
    fs::write(segment::path(dir.path(), 1), &whole).unwrap();
    let (outbox, found) = open(dir.path());
    assert_eq!((found.events, found.truncated_bytes, found.damaged.len()), (3, 0, 0));
    assert_eq!(fs::metadata(segment::path(dir.path(), 1)).unwrap().len(), whole.len() as u64 - 5000);
    assert_eq!(outbox.append(payload(4)).wait().unwrap(), 4);
    assert_eq!(read(dir.path()), [1, 2, 3, 4]);
}

#[test]
fn zeros_behind_a_closed_segment_are_cut_and_are_no_damage() {
    let dir = tempdir().unwrap();
    let (mut whole, _) = bytes(1, 3);
    let length = whole.len() as u64;
    whole.resize(whole.len() + 5000, 0);
    fs::write(segment::path(dir.path(), 1), &whole).unwrap();
    fs::write(segment::path(dir.path(), 4), bytes(4, 1).0).unwrap();
    let mut reader = Reader::open(dir.path()).unwrap();
    assert_eq!((reader.by_ref().count(), reader.damaged_bytes()), (4, 0));
    let (outbox, found) = open(dir.path());
    assert_eq!((found.events, found.truncated_bytes, found.damaged.len()), (4, 0, 0));
    assert_eq!(fs::metadata(segment::path(dir.path(), 1)).unwrap().len(), length);
    assert_eq!(outbox.stats().bytes, length + bytes(4, 1).0.len() as u64);
}

#[test]
fn a_record_behind_zeros_is_found_wherever_it_starts() {
    let gaps = (1..70).chain(4070..4110).chain(65_500..65_560).chain([300_000]);
    for gap in gaps {
        let dir = tempdir().unwrap();
        let (mut whole, _) = bytes(1, 1);
        let (at, sequence) = (whole.len() as u64, 2);
        whole.resize(whole.len() + gap, 0);
        // An empty payload, so that its header starts with zeros as well.
        record::encode(sequence, 1_700_000_000_000, false, b"", &mut whole);
        fs::write(segment::path(dir.path(), 1), &whole).unwrap();
        fs::write(segment::path(dir.path(), 3), bytes(3, 1).0).unwrap();
        let events: Vec<_> = Reader::open(dir.path()).unwrap().map(|event| event.unwrap().sequence).collect();
        assert_eq!(events, [1, 2, 3], "{gap} zeros");
        let found = open(dir.path()).1;
        assert_eq!(found.damaged.len(), 1);
        assert_eq!((found.damaged[0].offset, found.damaged[0].bytes), (at, gap as u64));
    }
}

#[test]
fn a_flipped_bit_costs_at_most_its_own_event() {
    let (whole, starts) = bytes(1, 4);
    let (next, _) = bytes(5, 2);
    for at in 0..whole.len() {
        let dir = tempdir().unwrap();
        let mut broken = whole.clone();
        broken[at] ^= 1 << (at % 8);
        fs::write(segment::path(dir.path(), 1), &broken).unwrap();
        fs::write(segment::path(dir.path(), 5), &next).unwrap();
        let hit = starts.iter().rposition(|start| *start <= at).map(|index| index as u64 + 1);
        let rest: Vec<u64> = (1..=6).filter(|sequence| Some(*sequence) != hit).collect();
        assert_eq!(read(dir.path()), rest, "bit in byte {at}");
        let (outbox, found) = open(dir.path());
        assert_eq!(found.events, rest.len() as u64, "bit in byte {at}");
        assert_eq!((found.damaged.len(), found.truncated_bytes), (1, 0), "bit in byte {at}");
        assert_eq!(found.damaged[0].path, segment::path(dir.path(), 1));
        assert_eq!(found.last_sequence, 6);
        assert_eq!(outbox.stats().events, rest.len() as u64);
    }
}

#[test]
fn a_flipped_bit_in_the_last_segment_costs_no_event_behind_it() {
    let (whole, starts) = bytes(1, 4);
    for at in 0..starts[3] {
        let dir = tempdir().unwrap();
        let mut broken = whole.clone();
        broken[at] ^= 0x10;
        fs::write(segment::path(dir.path(), 1), &broken).unwrap();
        let hit = starts.iter().rposition(|start| *start <= at).map(|index| index as u64 + 1);
        let (outbox, found) = open(dir.path());
        assert_eq!((found.damaged.len(), found.truncated_bytes), (1, 0), "bit in byte {at}");
        assert_eq!(outbox.append(payload(5)).wait().unwrap(), 5);
        drop(outbox);
        let rest: Vec<u64> = (1..=5).filter(|sequence| Some(*sequence) != hit).collect();
        assert_eq!(read(dir.path()), rest, "bit in byte {at}");
    }
}

#[test]
fn a_segment_of_a_newer_version_is_refused_by_name() {
    let dir = tempdir().unwrap();
    let (mut whole, _) = bytes(1, 2);
    whole[8] = 9;
    let mut sum = crc32fast::Hasher::new();
    sum.update(&9_u32.to_le_bytes());
    sum.update(&1_u64.to_le_bytes());
    whole[12..16].copy_from_slice(&sum.finalize().to_le_bytes());
    fs::write(segment::path(dir.path(), 1), &whole).unwrap();
    let error = Outbox::open(config(dir.path())).unwrap_err();
    assert!(matches!(error, OutboxError::Version { found: 9, supported: 1, .. }), "{error}");
    assert!(error.to_string().contains("00000000000000000001.seg"), "{error}");
    let error = Reader::open(dir.path()).unwrap().try_next().unwrap_err();
    assert!(matches!(error, OutboxError::Version { found: 9, .. }), "{error}");
    assert_eq!(fs::read(segment::path(dir.path(), 1)).unwrap(), whole, "it must be left alone");
}

#[test]
fn a_directory_in_the_place_of_a_segment_is_damage_and_no_end() {
    let dir = tempdir().unwrap();
    fs::create_dir(segment::path(dir.path(), 1)).unwrap();
    fs::write(segment::path(dir.path(), 5), bytes(5, 2).0).unwrap();
    let (outbox, found) = open(dir.path());
    // The maximum counts: none of their sequences may be assigned again.
    assert_eq!((found.events, found.damaged.len()), (6, 2));
    assert_eq!(outbox.append(payload(7)).wait().unwrap(), 7);
    let mut reader = Reader::open(dir.path()).unwrap();
    for _ in 0..3 {
        assert!(matches!(reader.try_next(), Err(OutboxError::Io { .. })), "it is not passed over");
    }
    fs::remove_dir(segment::path(dir.path(), 1)).unwrap();
    let rest: Vec<u64> = reader.map(|event| event.unwrap().sequence).collect();
    assert_eq!(rest, [5, 6, 7]);
}

#[test]
fn an_append_for_which_there_is_no_number_is_refused() {
    let dir = tempdir().unwrap();
    Cursor::load(dir.path()).unwrap().0.store(u64::MAX - 2).unwrap();
    for appended in [1, 0] {
        let outbox = Outbox::open(OutboxConfig::new(dir.path())).unwrap().0;
        for _ in 0..appended {
            assert_eq!(outbox.append(b"{}".to_vec()).wait().unwrap(), u64::MAX - 1);
        }
        for _ in 0..2 {
            let error = outbox.append(b"{}".to_vec()).wait().unwrap_err();
            assert!(matches!(error, OutboxError::Exhausted { .. }), "{error}");
        }
        outbox.close().unwrap();
    }
}
