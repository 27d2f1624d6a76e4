//! Huffman codes of a lossless bitstream, as `image-webp` reads them.

use super::bits::Reader;

/// Longest code, in bits.
const MAX_CODE_LEN: usize = 15;
/// Order in which the lengths of the code lengths' code come.
const ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// A code by which symbols are read.
pub(super) enum Code {
    /// One symbol, which takes no bits.
    Lone(u32),
    /// By the next 15 bits: a symbol, and above it the length of its code.
    Table(Vec<u32>),
}

/// What the bitstream says of a code.
enum Given {
    One(u32),
    /// In the order of their bits, 0 and 1, which the decoder does not sort.
    Two(u32, u32),
    Lengths(Vec<u8>),
}

impl Code {
    pub(super) fn read(reader: &mut Reader<'_>, alphabet: usize) -> Option<Self> {
        match given(reader, alphabet)? {
            Given::One(symbol) => Some(Self::Lone(symbol)),
            Given::Two(zero, one) => {
                let entry = |bits: usize| 1 << 16 | if bits & 1 == 0 { zero } else { one };
                Some(Self::Table((0..1 << MAX_CODE_LEN).map(entry).collect()))
            }
            Given::Lengths(lengths) => Self::of(&lengths),
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
            // The last of these overflows where the code is whole, and is not used.
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

/// Reads a code and tells how many symbols of each length it has, without making anything of it.
pub(super) fn read_lengths(reader: &mut Reader<'_>, alphabet: usize) -> Option<[u16; 16]> {
    let mut counts = [0; 16];
    match given(reader, alphabet)? {
        Given::One(_) => counts[1] = 1,
        Given::Two(..) => counts[1] = 2,
        Given::Lengths(lengths) => counts = counts_of(&lengths)?,
    }
    Some(counts)
}

/// How many codes have each length; `None` unless they leave no bits unused, or there is only one.
fn counts_of(lengths: &[u8]) -> Option<[u16; 16]> {
    let mut counts = [0u16; 16];
    lengths.iter().filter(|&&length| length > 0).for_each(|&length| counts[usize::from(length)] += 1);
    let symbols: u32 = counts.iter().map(|&count| u32::from(count)).sum();
    let whole: u32 =
        (1..=MAX_CODE_LEN).map(|length| u32::from(counts[length]) << (MAX_CODE_LEN - length)).sum();
    (symbols == 1 || whole == 1 << MAX_CODE_LEN).then_some(counts)
}

fn given(reader: &mut Reader<'_>, alphabet: usize) -> Option<Given> {
    if reader.bits(1)? == 1 {
        let two = reader.bits(1)? == 1;
        let wide = reader.bits(1)?;
        let first = reader.bits(1 + 7 * wide)?;
        ((first as usize) < alphabet).then_some(())?;
        if !two {
            return Some(Given::One(first));
        }
        let second = reader.bits(8)?;
        return ((second as usize) < alphabet).then_some(Given::Two(first, second));
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
    Some(Given::Lengths(lengths))
}

/// The code in which lengths are written, itself of lengths of at most 7: a table small enough to be made for each of thousands.
#[expect(clippy::large_enum_variant, reason = "one lives at a time, on the stack")]
enum LengthCode {
    Lone(u8),
    /// By the next 7 bits: length of the code, symbol.
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
