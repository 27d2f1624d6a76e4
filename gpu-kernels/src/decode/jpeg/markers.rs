//! Parses the markers of a JPEG stream (ITU-T T.81, annex B) as leniently as libjpeg does.

use memchr::memchr;

/// Marker codes, the byte after 0xFF.
pub(super) mod code {
    pub(crate) const TEM: u8 = 0x01;
    pub(crate) const SOF0: u8 = 0xC0;
    pub(crate) const DHT: u8 = 0xC4;
    pub(crate) const JPG: u8 = 0xC8;
    pub(crate) const DAC: u8 = 0xCC;
    pub(crate) const SOF1: u8 = 0xC1;
    pub(crate) const SOF2: u8 = 0xC2;
    pub(crate) const SOF15: u8 = 0xCF;
    pub(crate) const RST0: u8 = 0xD0;
    pub(crate) const RST7: u8 = 0xD7;
    pub(crate) const SOI: u8 = 0xD8;
    pub(crate) const EOI: u8 = 0xD9;
    pub(crate) const SOS: u8 = 0xDA;
    pub(crate) const DQT: u8 = 0xDB;
    pub(crate) const DRI: u8 = 0xDD;
    pub(crate) const APP0: u8 = 0xE0;
    pub(crate) const APP1: u8 = 0xE1;
    pub(crate) const APP2: u8 = 0xE2;
    pub(crate) const APP14: u8 = 0xEE;
    pub(crate) const APP15: u8 = 0xEF;
    pub(crate) const COM: u8 = 0xFE;
}

/// A marker with its parameters, or without any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    pub(super) code: u8,
    /// What follows the two length bytes; empty for a marker that has no length.
    pub(super) body: &'a [u8],
}

impl Segment<'_> {
    /// Whether this is a frame header (SOF): the codes from 0xC0 to 0xCF without DHT, JPG and DAC.
    pub(super) fn is_frame(&self) -> bool {
        (code::SOF0..=code::SOF15).contains(&self.code)
            && ![code::DHT, code::JPG, code::DAC].contains(&self.code)
    }
}

/// Iterates over segments. After an SOS the caller skips the entropy-coded data with [`Markers::skip_entropy`].
#[derive(Clone, Debug)]
pub(super) struct Markers<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Markers<'a> {
    /// Starts after the SOI with which every JPEG begins.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 2 }
    }

    /// Position of the next segment; after an SOS that of its entropy-coded data.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The next segment, or `None` if the stream ends within it. Bytes between segments are skipped, since cameras write such.
    pub(super) fn next_segment(&mut self) -> Option<Segment<'a>> {
        let code = loop {
            self.at += memchr(0xFF, self.bytes.get(self.at..)?)?;
            self.at += self.bytes[self.at..].iter().position(|&byte| byte != 0xFF)?;
            let code = self.bytes[self.at];
            self.at += 1;
            if code != 0 {
                break code;
            }
        };
        if matches!(code, code::TEM | code::RST0..=code::RST7 | code::SOI | code::EOI) {
            return Some(Segment { code, body: &[] });
        }
        let length = usize::from(u16::from_be_bytes(*self.bytes.get(self.at..)?.first_chunk()?));
        let body = self.bytes.get(self.at + 2..self.at + length)?;
        self.at += length;
        Some(Segment { code, body })
    }

    /// The entropy-coded data up to the next marker that is not a restart marker, and the number of restart markers in it.
    pub(super) fn skip_entropy(&mut self) -> (&'a [u8], u64) {
        let start = self.at;
        let mut restarts = 0;
        while let Some(offset) = self.bytes.get(self.at..).and_then(|rest| memchr(0xFF, rest)) {
            self.at += offset;
            match self.bytes.get(self.at + 1) {
                Some(0) => self.at += 2,
                Some(0xFF) => self.at += 1,
                Some(code::RST0..=code::RST7) => {
                    restarts += 1;
                    self.at += 2;
                }
                Some(_) => return (&self.bytes[start..self.at], restarts),
                None => break,
            }
        }
        // An 0xFF without a second byte is half a marker: not data.
        let end = if self.at < self.bytes.len() && self.bytes.ends_with(&[0xFF]) {
            self.bytes.len() - 1
        } else {
            self.bytes.len()
        };
        self.at = self.bytes.len();
        (&self.bytes[start..end], restarts)
    }
}

/// Number of units that a restart interval counts in a scan (T.81, A.2): blocks of the `only` component with its sampling
/// factors, or MCUs of several. A block has `side` pixels per side, `most` are the largest sampling factors of the frame.
pub(super) fn restart_units(
    (width, height): (u64, u64),
    side: u64,
    most: (u64, u64),
    only: Option<(u64, u64)>,
) -> u64 {
    match only {
        Some((across, down)) => {
            (width * across).div_ceil(most.0).div_ceil(side) * (height * down).div_ceil(most.1).div_ceil(side)
        }
        None => width.div_ceil(side * most.0) * height.div_ceil(side * most.1),
    }
}

/// Whether the stream has more than `max` scans from the first SOS on. Stops at the first one beyond.
pub(super) fn more_scans_than(max: u32, mut rest: Markers<'_>) -> bool {
    // The caller has read the first SOS.
    let mut scans = 1;
    rest.skip_entropy();
    while scans <= max {
        match rest.next_segment() {
            Some(Segment { code: code::SOS, .. }) => {
                scans += 1;
                rest.skip_entropy();
            }
            None | Some(Segment { code: code::EOI, .. }) => return false,
            Some(_) => {}
        }
    }
    true
}
