//! Reads bits from the least significant on.

/// The bits of a bitstream.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// The next byte that is not in `window`.
    next: usize,
    /// The next bits, at the bottom; zeros above those that are there.
    window: u64,
    /// How many of them are there.
    left: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, next: 0, window: 0, left: 0 }
    }

    /// Has at least 32 bits in the window, or all that are left.
    #[inline]
    fn refill(&mut self) {
        while self.left <= 56 {
            let Some(&byte) = self.bytes.get(self.next) else { return };
            self.window |= u64::from(byte) << self.left;
            self.left += 8;
            self.next += 1;
        }
    }

    /// The next 15 bits, zeros behind the end.
    #[inline]
    pub(super) fn peek(&mut self) -> usize {
        if self.left < 15 {
            self.refill();
        }
        (self.window & 0x7FFF) as usize
    }

    /// Takes at most 32 bits out of the window; `None` where there are fewer.
    #[inline]
    pub(super) fn consume(&mut self, count: u32) -> Option<()> {
        self.left = self.left.checked_sub(count)?;
        self.window >>= count;
        Some(())
    }

    /// The next `count` bits, at most 32.
    #[inline]
    pub(super) fn bits(&mut self, count: u32) -> Option<u32> {
        if self.left < count {
            self.refill();
        }
        let value = self.window & ((1 << count) - 1);
        self.consume(count)?;
        Some(value as u32)
    }
}
