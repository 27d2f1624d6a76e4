//! The bit reader (least significant bit first) and the Huffman codes of a lossless WebP, as `image-webp` reads them.

/// Longest code, in bits.
const MAX_CODE_LEN: usize = 15;
/// Order of the lengths of the code for lengths.
const ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// A Huffman code.
pub(super) enum Code {
    /// A single symbol, which takes no bits.
    Lone(u32),
    /// Indexed by the next 15 bits: a symbol, and above it the length of its code.
    Table(Vec<u32>),
}

/// A code as the bitstream defines it.
enum Definition {
    One(u32),
    /// For the bits 0 and 1, which the decoder does not sort.
    Two(u32, u32),
    Lengths(Vec<u8>),
}

impl Code {
    pub(super) fn read(reader: &mut Reader<'_>, alphabet: usize) -> Option<Self> {
        match read_definition(reader, alphabet)? {
            Definition::One(symbol) => Some(Self::Lone(symbol)),
            Definition::Two(zero, one) => {
                let entry = |bits: usize| 1 << 16 | if bits & 1 == 0 { zero } else { one };
                Some(Self::Table((0..1 << MAX_CODE_LEN).map(entry).collect()))
            }
            Definition::Lengths(lengths) => Self::of(&lengths),
        }
    }

    /// A canonical code.
    fn of(lengths: &[u8]) -> Option<Self> {
        let counts = counts_of(lengths)?;
        let used = || (0u32..).zip(lengths).filter(|&(_, &length)| length > 0);
        let (first, _) = used().next()?;
        if used().nth(1).is_none() {
            return Some(Self::Lone(first));
        }
        let mut next = [0u16; MAX_CODE_LEN + 2];
        for length in 1..=MAX_CODE_LEN {
            // The last of these overflows if the code is complete, and is not used.
            next[length + 1] = next[length].wrapping_add(counts[length]) << 1;
        }
        let mut table = vec![0; 1 << MAX_CODE_LEN];
        for (symbol, &length) in used() {
            let length = usize::from(length);
            let code = next[length];
            next[length] = code.wrapping_add(1);
            let start = usize::from(code.reverse_bits() >> (16 - length));
            for entry in table[start..].iter_mut().step_by(1 << length) {
                *entry = (length as u32) << 16 | symbol;
            }
        }
        Some(Self::Table(table))
    }

    #[inline]
    pub(super) fn symbol(&self, reader: &mut Reader<'_>) -> Option<u32> {
        match self {
            Self::Lone(symbol) => Some(*symbol),
            Self::Table(table) => {
                let entry = table[reader.peek()];
                reader.consume(entry >> 16)?;
                Some(entry & 0xFFFF)
            }
        }
    }
}

/// Reads a code and returns the number of symbols per length, without building tables.
pub(super) fn read_lengths(reader: &mut Reader<'_>, alphabet: usize) -> Option<[u16; 16]> {
    let mut counts = [0; 16];
    match read_definition(reader, alphabet)? {
        Definition::One(_) => counts[1] = 1,
        Definition::Two(..) => counts[1] = 2,
        Definition::Lengths(lengths) => counts = counts_of(&lengths)?,
    }
    Some(counts)
}

/// The number of codes per length; `None` unless the code is complete or has a single symbol.
fn counts_of(lengths: &[u8]) -> Option<[u16; 16]> {
    let mut counts = [0u16; 16];
    lengths.iter().filter(|&&length| length > 0).for_each(|&length| counts[usize::from(length)] += 1);
    let symbols: u32 = counts.iter().map(|&count| u32::from(count)).sum();
    let whole: u32 =
        (1..=MAX_CODE_LEN).map(|length| u32::from(counts[length]) << (MAX_CODE_LEN - length)).sum();
    (symbols == 1 || whole == 1 << MAX_CODE_LEN).then_some(counts)
}

fn read_definition(reader: &mut Reader<'_>, alphabet: usize) -> Option<Definition> {
    if reader.bits(1)? == 1 {
        let two = reader.bits(1)? == 1;
        let wide = reader.bits(1)?;
        let first = reader.bits(1 + 7 * wide)?;
        ((first as usize) < alphabet).then_some(())?;
        if !two {
            return Some(Definition::One(first));
        }
        let second = reader.bits(8)?;
        return ((second as usize) < alphabet).then_some(Definition::Two(first, second));
    }
    let mut of_lengths = [0u8; 19];
    let count = 4 + reader.bits(4)? as usize;
    for &place in &ORDER[..count] {
        of_lengths[place] = reader.bits(3)? as u8;
    }
    let code = LengthCode::of(&of_lengths)?;
    let mut left = alphabet as u32;
    if reader.bits(1)? == 1 {
        let bits = 2 + 2 * reader.bits(3)?;
        left = 2 + reader.bits(bits)?;
    }
    let mut lengths = vec![0u8; alphabet];
    let (mut symbol, mut previous) = (0, 8u8);
    while symbol < alphabet && left > 0 {
        left -= 1;
        let (length, times) = match code.symbol(reader)? {
            16 => (previous, 3 + reader.bits(2)?),
            17 => (0, 3 + reader.bits(3)?),
            18 => (0, 11 + reader.bits(7)?),
            length => (length, 1),
        };
        let end = symbol + times as usize;
        lengths.get_mut(symbol..end)?.fill(length);
        symbol = end;
        if length > 0 {
            previous = length;
        }
    }
    Some(Definition::Lengths(lengths))
}

/// The code for lengths, with lengths of at most 7: its table is small enough to be built thousands of times.
#[expect(clippy::large_enum_variant, reason = "one lives at a time, on the stack")]
enum LengthCode {
    Lone(u8),
    /// Indexed by the next 7 bits: length of the code, symbol.
    Table([(u8, u8); 128]),
}

impl LengthCode {
    fn of(lengths: &[u8; 19]) -> Option<Self> {
        let counts = counts_of(lengths)?;
        let used = || (0u8..).zip(lengths).filter(|&(_, &length)| length > 0);
        let (first, _) = used().next()?;
        if used().nth(1).is_none() {
            return Some(Self::Lone(first));
        }
        let mut next = [0u8; 9];
        for length in 1..8 {
            next[length + 1] = next[length].wrapping_add(counts[length] as u8) << 1;
        }
        let mut table = [(0, 0); 128];
        for (symbol, &length) in used() {
            let code = next[usize::from(length)];
            next[usize::from(length)] = code.wrapping_add(1);
            let start = usize::from(code.reverse_bits() >> (8 - length));
            for entry in table[start..].iter_mut().step_by(1 << length) {
                *entry = (length, symbol);
            }
        }
        Some(Self::Table(table))
    }

    fn symbol(&self, reader: &mut Reader<'_>) -> Option<u8> {
        match self {
            Self::Lone(symbol) => Some(*symbol),
            Self::Table(table) => {
                let (length, symbol) = table[reader.peek() & 127];
                reader.consume(u32::from(length))?;
                Some(symbol)
            }
        }
    }
}

/// A bit reader.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// The next byte that is not in `window`.
    next: usize,
    /// The next bits, at the bottom; zeros above.
    window: u64,
    /// Number of valid bits in it.
    left: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, next: 0, window: 0, left: 0 }
    }

    /// Refills the window to at least 32 bits, or to all that are left.
    #[inline]
    fn refill(&mut self) {
        while self.left <= 56 {
            let Some(&byte) = self.bytes.get(self.next) else { return };
            self.window |= u64::from(byte) << self.left;
            self.left += 8;
            self.next += 1;
        }
    }

    /// The next 15 bits, with zeros past the end.
    #[inline]
    pub(super) fn peek(&mut self) -> usize {
        if self.left < 15 {
            self.refill();
        }
        (self.window & 0x7FFF) as usize
    }

    /// Consumes at most 32 bits of the window; `None` if fewer are left.
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
