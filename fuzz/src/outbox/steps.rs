//! Directories of an outbox, written by the steps that an input encodes.

use std::path::Path;

use cloud_sync::outbox::Durability;

use super::{MAGIC, RECORD_HEADER, SEGMENT_HEADER, encode};

/// Most segments of an input.
const MAX_SEGMENTS: usize = 8;

/// The files on disk.
pub(super) struct Written {
    /// Segments by the first sequence in their names.
    segments: Vec<(u64, Vec<u8>)>,
    cursor: Option<Vec<u8>>,
    pub(super) durability: Durability,
    /// The events, if all segments are intact and consecutive.
    pub(super) sound: Option<Vec<(u64, Vec<u8>)>>,
}

impl Written {
    /// One segment of these bytes, named by its header.
    pub(super) fn raw(bytes: &[u8]) -> Self {
        let first = bytes.get(16..24).map_or(1, |first| {
            u64::from_le_bytes([
                first[0], first[1], first[2], first[3], first[4], first[5], first[6], first[7],
            ])
        });
        let segments = vec![(first, bytes.to_vec())];
        Self { segments, cursor: None, durability: Durability::Fsync, sound: None }
    }

    pub(super) fn by_steps(input: &[u8]) -> Self {
        let mut steps = Steps { rest: input };
        let durability = if steps.byte() & 1 == 0 { Durability::Fsync } else { Durability::OsBuffered };
        let written = Self { segments: Vec::new(), cursor: None, durability, sound: Some(Vec::new()) };
        let mut draft = Draft { written, next: 1 };
        while !steps.rest.is_empty() {
            draft.take(&mut steps);
        }
        draft.written
    }

    pub(super) fn write(&self, dir: &Path) {
        for (first, bytes) in &self.segments {
            std::fs::write(dir.join(format!("{first:020}.seg")), bytes).expect("a segment on disk");
        }
        if let Some(cursor) = &self.cursor {
            std::fs::write(dir.join("cursor"), cursor).expect("a cursor on disk");
        }
    }

    /// The sequence numbers in segment names.
    pub(super) fn names(&self) -> impl Iterator<Item = u64> {
        self.segments.iter().map(|(first, _)| *first)
    }

    /// Whether a record of these bytes is in a segment.
    pub(super) fn holds(&self, record: &[u8]) -> bool {
        self.segments.iter().any(|(_, bytes)| memchr::memmem::find(bytes, record).is_some())
    }

    /// Whether a header is of another version.
    pub(super) fn has_newer_version(&self) -> bool {
        self.segments
            .iter()
            .any(|(_, bytes)| bytes.starts_with(MAGIC) && bytes.get(8..12) != Some(&[1, 0, 0, 0]))
    }
}

/// The remaining steps.
struct Steps<'a> {
    rest: &'a [u8],
}

impl<'a> Steps<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (front, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        front
    }

    fn number(&mut self) -> u64 {
        self.take(8).iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }
}

struct Draft {
    written: Written,
    /// The next sequence number.
    next: u64,
}

impl Draft {
    fn take(&mut self, steps: &mut Steps<'_>) {
        match steps.byte() % 12 {
            0 | 1 => {
                let length = usize::from(steps.byte());
                self.record(steps.take(length));
            }
            2 => self.segment(self.next),
            3 => {
                // A gap, as a failed append leaves one.
                self.segment(self.next.saturating_add(1 + u64::from(steps.byte())));
            }
            4 => self.zeros(usize::from(steps.byte()) * 16),
            5 => {
                let length = usize::from(steps.byte());
                self.damage(|bytes| bytes.extend_from_slice(steps.take(length)));
            }
            6 => {
                let length = usize::from(steps.byte());
                self.damage(|bytes| bytes.truncate(bytes.len().saturating_sub(length)));
            }
            7 => {
                let (back, change) = (usize::from(steps.byte()) << 2, steps.byte());
                self.damage(|bytes| {
                    let at = bytes.len().saturating_sub(back + 1);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= change;
                    }
                });
            }
            8 => {
                // A sequence number out of order, with a valid checksum.
                let sequence = steps.number();
                let length = usize::from(steps.byte());
                let record = encode(sequence, 7, steps.take(length));
                self.damage(|bytes| bytes.extend_from_slice(&record));
            }
            9 => {
                let first = steps.number();
                self.written.sound = None;
                self.segment(first);
            }
            10 => {
                let body = format!(
                    "1 {}",
                    if steps.byte() & 1 == 0 { u64::from(steps.byte()) } else { steps.number() }
                );
                let line = format!("{body} {:08x}\n", crc32fast::hash(body.as_bytes()));
                self.written.cursor = Some(line.into_bytes());
            }
            _ => {
                let length = usize::from(steps.byte() % 64);
                self.written.cursor = Some(steps.take(length).to_vec());
            }
        }
    }

    /// Begins a segment.
    fn segment(&mut self, first: u64) {
        let segments = &mut self.written.segments;
        if segments.len() == MAX_SEGMENTS || segments.iter().any(|(other, _)| *other == first) {
            return;
        }
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&1u32.to_le_bytes());
        let sum = crc32fast::hash(&[&1u32.to_le_bytes()[..], &first.to_le_bytes()].concat());
        header.extend_from_slice(&sum.to_le_bytes());
        header.extend_from_slice(&first.to_le_bytes());
        debug_assert_eq!(header.len(), SEGMENT_HEADER);
        segments.push((first, header));
        self.next = first;
    }

    /// Adds a valid record.
    fn record(&mut self, payload: &[u8]) {
        if self.written.segments.is_empty() {
            self.segment(self.next);
        }
        let record = encode(self.next, 1_700_000_000_000, payload);
        debug_assert_eq!(record.len(), RECORD_HEADER + payload.len());
        if let Some((_, bytes)) = self.written.segments.last_mut() {
            // Zeros end a segment.
            let follows = !bytes.ends_with(&[0; 16]) || bytes.len() == SEGMENT_HEADER;
            bytes.extend_from_slice(&record);
            match &mut self.written.sound {
                Some(sound) if follows => sound.push((self.next, payload.to_vec())),
                sound => *sound = None,
            }
        }
        self.next = self.next.saturating_add(1);
    }

    /// Adds the zeros that a writer preallocates.
    fn zeros(&mut self, count: usize) {
        if let Some((_, bytes)) = self.written.segments.last_mut() {
            bytes.resize(bytes.len() + count, 0);
        }
    }

    fn damage(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        self.written.sound = None;
        if let Some((_, bytes)) = self.written.segments.last_mut() {
            change(bytes);
        }
    }
}
