//! One event on disk: 24 bytes of header, then the payload.
//!
//! ```text
//! offset  0  u32  length of the payload
//!         4  u32  CRC-32 (IEEE) of the length, the sequence, the time and the payload
//!         8  u64  sequence
//!        16  u64  time of the append, milliseconds since 1970; the highest bit marks a bulk event (`quota`)
//!        24       payload
//! ```
//! All numbers are little-endian. Sequences start at 1. So a run of zeros, as written ahead of the writer and as left
//! by a crash, is never a record, and no record starts with sixteen of them. (The checksum of zeros is not zero
//! either.)

/// Bytes before the payload.
pub(super) const HEADER_LEN: usize = 24;

/// A record has a nonzero byte within this many bytes of its start: its sequence ends there.
pub(super) const NONZERO_WITHIN: usize = 16;

/// Maximum bytes of a payload. It limits what a reader allocates for a damaged length.
pub(super) const MAX_PAYLOAD: usize = 1 << 20;

const BULK: u64 = 1 << 63;

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) length: usize,
    pub(super) sequence: u64,
    pub(super) unix_ms: u64,
    pub(super) bulk: bool,
    crc: u32,
}

impl RecordHeader {
    /// Parses a header; its fields are unverified until [`Self::matches`].
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (time, _) = rest.split_first_chunk::<8>()?;
        let time = u64::from_le_bytes(*time);
        Some(Self {
            length: u32::from_le_bytes(*length) as usize,
            sequence: u64::from_le_bytes(*sequence),
            unix_ms: time & !BULK,
            bulk: time & BULK != 0,
            crc: u32::from_le_bytes(*crc),
        })
    }

    /// Whether the checksum matches the header and this payload.
    pub(super) fn matches(&self, payload: &[u8]) -> bool {
        let Ok(length) = u32::try_from(self.length) else { return false };
        self.crc == checksum(length, self.sequence, time(self.unix_ms, self.bulk), payload)
    }
}

/// Bytes that a payload of this length takes on disk.
pub(super) fn size(payload: usize) -> u64 {
    (HEADER_LEN + payload) as u64
}

/// Appends a record to `out`. The caller has checked the payload against [`MAX_PAYLOAD`].
pub(super) fn encode(sequence: u64, unix_ms: u64, bulk: bool, payload: &[u8], out: &mut Vec<u8>) {
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    let length = payload.len() as u32;
    let time = time(unix_ms, bulk);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&checksum(length, sequence, time, payload).to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&time.to_le_bytes());
    out.extend_from_slice(payload);
}

fn time(unix_ms: u64, bulk: bool) -> u64 {
    (unix_ms & !BULK) | if bulk { BULK } else { 0 }
}

fn checksum(length: u32, sequence: u64, time: u64, payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length.to_le_bytes());
    sum.update(&sequence.to_le_bytes());
    sum.update(&time.to_le_bytes());
    sum.update(payload);
    sum.finalize()
}
