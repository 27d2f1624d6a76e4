//! The entropy-coded data without byte stuffing, and a bit reader.

use memchr::memchr;

/// Longest scan that is decoded here, since it is copied. libjpeg-turbo reads longer ones in place.
pub(in crate::decode::jpeg) const MAX_SCAN: usize = 16 << 20;
/// Memory per segment besides its data.
pub(in crate::decode::jpeg) const SEGMENT_BYTES: usize = PAD + 2 * size_of::<(usize, usize)>();

/// Zeros after each segment, so that a load of eight bytes near its end stays inside.
const PAD: usize = 16;

/// The scan's data without stuffed zeros, split at the restart markers.
#[derive(Debug, Default)]
pub(super) struct EntropyData {
    clean: Vec<u8>,
    /// Start and end of each segment in `clean`, without padding.
    cuts: Vec<(usize, usize)>,
}

/// Limits on the data and the segments that are kept between images.
const KEEP: usize = 4 << 20;
const KEEP_CUTS: usize = 1 << 15;

impl EntropyData {
    pub(super) fn capacity(&self) -> usize {
        self.clean.capacity() + self.cuts.capacity() * size_of::<(usize, usize)>()
    }

    /// Releases memory beyond [`KEEP`] and [`KEEP_CUTS`].
    pub(super) fn trim(&mut self) {
        if self.clean.capacity() > KEEP {
            self.clean = Vec::new();
        }
        if self.cuts.capacity() > KEEP_CUTS {
            self.cuts = Vec::new();
        }
    }

    /// Reads the scan, which must have this many segments, up to its EOI. `None` for another number of segments, fill bytes,
    /// restart markers out of order, and if the data is not followed by an EOI: libjpeg-turbo may reject such an image, so it
    /// is left to it.
    pub(super) fn collect(&mut self, scan: &[u8], segments: usize) -> Option<()> {
        self.trim();
        (scan.len() <= MAX_SCAN).then_some(())?;
        self.clean.clear();
        self.cuts.clear();
        self.clean.reserve_exact(scan.len() + PAD);
        let (mut rest, mut start, mut expected, mut ended) = (scan, 0, 0u8, false);
        while let Some(at) = memchr(0xFF, rest) {
            match rest.get(at + 1) {
                Some(0) => self.clean.extend_from_slice(&rest[..=at]),
                Some(&marker @ 0xD0..=0xD7) => {
                    (marker == 0xD0 + expected && self.cuts.len() + 1 < segments).then_some(())?;
                    expected = (expected + 1) % 8;
                    self.clean.extend_from_slice(&rest[..at]);
                    start = self.cut(start);
                }
                Some(0xD9) => {
                    rest = &rest[..at];
                    ended = true;
                    break;
                }
                _ => return None,
            }
            rest = &rest[at + 2..];
        }
        self.clean.extend_from_slice(rest);
        self.cut(start);
        (ended && self.cuts.len() == segments).then_some(())
    }

    fn cut(&mut self, start: usize) -> usize {
        self.cuts.push((start, self.clean.len()));
        self.clean.resize(self.clean.len() + PAD, 0);
        self.clean.len()
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = Bits<'_>> {
        self.cuts.iter().map(|&(start, end)| Bits {
            bytes: &self.clean[start..end + PAD],
            at: 0,
            end: (end - start) * 8,
            window: 0,
            left: 0,
        })
    }
}

/// T.81's sign extension of a value of `size` bits, 1 to 15 (F.2.2.1, EXTEND).
#[inline(always)]
pub(super) fn extend(value: i32, size: usize) -> i32 {
    if value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
}

/// Reads a segment, most significant bit first.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// Bits consumed.
    at: usize,
    /// Total number of bits.
    end: usize,
    /// The next bits, at the top.
    window: u64,
    /// Number of valid bits in it.
    left: usize,
}

impl Bits<'_> {
    /// Makes at least 32 bits available: a symbol of at most 16 and its value of at most 15. `None` far beyond the end.
    #[inline(always)]
    pub(super) fn refill(&mut self) -> Option<()> {
        if self.left < 32 {
            let bytes = self.bytes.get(self.at / 8..)?.first_chunk::<8>()?;
            self.window = u64::from_be_bytes(*bytes) << (self.at % 8);
            self.left = 64 - self.at % 8;
        }
        Some(())
    }

    /// The next `count` bits, at most 16, without consuming them.
    #[inline(always)]
    pub(super) fn peek(&self, count: usize) -> usize {
        (self.window >> (64 - count)) as usize
    }

    #[inline(always)]
    pub(super) fn consume(&mut self, count: usize) {
        self.window <<= count;
        self.left = self.left.wrapping_sub(count);
        self.at += count;
    }

    /// A signed value of `size` bits, at most 15.
    #[inline(always)]
    pub(super) fn signed(&mut self, size: usize) -> i32 {
        if size == 0 {
            return 0;
        }
        let value = self.peek(size) as i32;
        self.consume(size);
        extend(value, size)
    }

    /// Whether no bit beyond the end was read.
    pub(super) fn is_within(&self) -> bool {
        self.at <= self.end
    }

    /// Whether everything but the padding of the last byte was read.
    pub(super) fn is_used_up(&self) -> bool {
        self.is_within() && self.end - self.at < 8
    }
}
