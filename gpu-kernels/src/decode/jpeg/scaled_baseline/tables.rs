//! Huffman tables: decode single symbols where values are needed, and skip several at a time where they are not.

use super::bits::{Bits, extend};
use super::frame::{Component, Frame};

/// Bits per lookup. Two tables of this size stay in the first-level cache.
const SEEN: usize = 12;
/// Set if the skipped symbols include the end of the block.
const ENDS: u32 = 1 << 16;

/// A code as in a DHT segment: the number of codes per length, and their symbols in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) counts: [u8; 16],
    pub(super) symbols: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Huffman {
    code: Code,
    /// By the next [`SEEN`] bits: length of the first code in the high byte, its symbol in the low; 0 for a longer code.
    first: Vec<u16>,
    /// By the next [`SEEN`] bits: bits of all complete symbols and their values (low byte), number of coefficients (second
    /// byte), [`ENDS`] if the last of them is an EOB; 0 if not even one is complete.
    several: Vec<u32>,
    /// By the next [`SEEN`] bits, if they contain a complete AC symbol and its value: the value (upper 16 bits), the run
    /// (second byte) and the bits of both (low byte); else 0.
    valued: Vec<u32>,
    /// First code, first index and count of each length.
    lengths: [(u32, usize, usize); 16],
}

impl Huffman {
    fn new(code: &Code) -> Option<Self> {
        let mut lengths = [(0, 0, 0); 16];
        let (mut next, mut index) = (0u32, 0);
        for (length, &count) in code.counts.iter().enumerate() {
            lengths[length] = (next, index, usize::from(count));
            index += usize::from(count);
            next += u32::from(count);
            // No code is all ones (T.81, C.2); libjpeg-turbo requires that.
            (next < 1 << (length + 1)).then_some(())?;
            next <<= 1;
        }
        (index == code.symbols.len()).then_some(())?;
        let mut table = Self {
            code: code.clone(),
            first: vec![0; 1 << SEEN],
            several: vec![0; 1 << SEEN],
            valued: vec![0; 1 << SEEN],
            lengths,
        };
        for seen in 0..1 << SEEN {
            if let Some((length, symbol)) = table.lookup(seen, SEEN) {
                table.first[seen] = (length as u16) << 8 | u16::from(symbol);
            }
        }
        for seen in 0..1 << SEEN {
            table.several[seen] = table.whole_symbols(seen);
            table.valued[seen] = table.whole_value(seen);
        }
        Some(table)
    }

    /// The first code in the top bits of `bits`, of which `count` are known.
    fn lookup(&self, bits: usize, count: usize) -> Option<(usize, u8)> {
        (1..=count.min(16)).find_map(|length| {
            let (first, index, codes) = self.lengths[length - 1];
            let code = (bits >> (count - length)) as u32;
            let offset = code.checked_sub(first)? as usize;
            (offset < codes).then(|| (length, self.code.symbols[index + offset]))
        })
    }

    /// Walks over the complete AC symbols in a window. The last value may extend beyond the window, since a skipped value need
    /// not be read.
    fn whole_symbols(&self, seen: usize) -> u32 {
        let (mut used, mut covered) = (0, 0);
        while used < SEEN {
            let known = SEEN - used;
            let Some((length, symbol)) = self.lookup(seen & ((1 << known) - 1), known) else { break };
            let (run, size) = (usize::from(symbol >> 4), usize::from(symbol & 15));
            match (run, size) {
                (15, 0) => covered += 16,
                (_, 0) => return (used + length) as u32 | (covered << 8) as u32 | ENDS,
                _ => covered += run + 1,
            }
            if covered > 63 {
                break;
            }
            used += length + size;
        }
        if used == 0 || covered > 63 { 0 } else { used as u32 | (covered << 8) as u32 }
    }

    fn whole_value(&self, seen: usize) -> u32 {
        let Some((length, symbol)) = self.lookup(seen, SEEN) else { return 0 };
        let size = usize::from(symbol & 15);
        if size == 0 || length + size > SEEN {
            return 0;
        }
        let value = extend((seen >> (SEEN - length - size) & ((1 << size) - 1)) as i32, size);
        ((value as u32) << 16) | u32::from(symbol >> 4) << 8 | (length + size) as u32
    }

    /// The next AC coefficient: the number of zeros before it, and its value. A run of 64 stands for an EOB, and a ZRL is 15
    /// zeros before a zero. Needs a refilled reader.
    #[inline(always)]
    pub(super) fn coefficient(&self, bits: &mut Bits<'_>) -> Option<(usize, i32)> {
        let entry = self.valued[bits.peek(SEEN)];
        if entry != 0 {
            bits.consume((entry & 0xFF) as usize);
            return Some(((entry >> 8 & 0xFF) as usize, entry as i32 >> 16));
        }
        let symbol = self.symbol(bits)?;
        let (run, size) = (usize::from(symbol >> 4), usize::from(symbol & 15));
        match (run, size) {
            (15, 0) => Some((15, 0)),
            (_, 0) => Some((64, 0)),
            _ => Some((run, bits.signed(size))),
        }
    }

    /// Decodes one symbol; needs a refilled reader.
    #[inline(always)]
    pub(super) fn symbol(&self, bits: &mut Bits<'_>) -> Option<u8> {
        let entry = self.first[bits.peek(SEEN)];
        let (length, symbol) = match entry {
            0 => self.lookup(bits.peek(16), 16)?,
            _ => (usize::from(entry >> 8), entry as u8),
        };
        bits.consume(length);
        Some(symbol)
    }

    /// Skips to the end of the block, from coefficient `k` on.
    #[inline(always)]
    pub(super) fn skip_rest(&self, bits: &mut Bits<'_>, mut k: usize) -> Option<()> {
        while k < 64 {
            bits.refill()?;
            let entry = self.several[bits.peek(SEEN)];
            let covered = (entry >> 8 & 0xFF) as usize;
            // A window may extend into the next block only if this one could end within it without an EOB.
            if entry != 0 && k + covered < 64 {
                bits.consume((entry & 0xFF) as usize);
                if entry & ENDS != 0 {
                    return Some(());
                }
                k += covered;
                continue;
            }
            let symbol = self.symbol(bits)?;
            match (usize::from(symbol >> 4), usize::from(symbol & 15)) {
                (15, 0) => k += 16,
                (_, 0) => return Some(()),
                (run, size) => {
                    bits.consume(size);
                    k += run + 1;
                }
            }
        }
        (k == 64).then_some(())
    }
}

/// The tables of the last image; cameras send the same ones with every frame.
#[derive(Debug, Default)]
pub(super) struct TableCache {
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
}

/// The tables of one image.
pub(super) struct Tables<'a> {
    dc: [&'a Huffman; 3],
    ac: [&'a Huffman; 3],
}

impl TableCache {
    pub(super) fn build(&mut self, frame: &Frame<'_>) -> Option<Tables<'_>> {
        for component in &frame.components {
            self.renew(&frame.dc, &frame.ac, component.dc, component.ac)?;
        }
        let [a, b, c] = &frame.components;
        let dc = |component: &Component| self.dc[component.dc].as_ref();
        let ac = |component: &Component| self.ac[component.ac].as_ref();
        Some(Tables { dc: [dc(a)?, dc(b)?, dc(c)?], ac: [ac(a)?, ac(b)?, ac(c)?] })
    }

    /// Builds the tables of one component, by their numbers, if their codes have changed.
    pub(super) fn renew(
        &mut self,
        dc_codes: &[Option<Code>; 4],
        ac_codes: &[Option<Code>; 4],
        dc: usize,
        ac: usize,
    ) -> Option<()> {
        renew(self.dc.get_mut(dc)?, dc_codes.get(dc)?.as_ref()?)?;
        renew(self.ac.get_mut(ac)?, ac_codes.get(ac)?.as_ref()?)
    }

    /// A DC and an AC table that were built.
    #[inline(always)]
    pub(super) fn pair(&self, dc: usize, ac: usize) -> Option<(&Huffman, &Huffman)> {
        Some((self.dc.get(dc)?.as_ref()?, self.ac.get(ac)?.as_ref()?))
    }
}

fn renew(slot: &mut Option<Huffman>, code: &Code) -> Option<()> {
    if slot.as_ref().is_none_or(|table| table.code != *code) {
        *slot = Some(Huffman::new(code)?);
    }
    Some(())
}

impl Tables<'_> {
    pub(super) fn dc(&self, component: &Component) -> &Huffman {
        self.dc[component.index]
    }

    pub(super) fn ac(&self, component: &Component) -> &Huffman {
        self.ac[component.index]
    }
}

/// The codes of a JPEG that has none, as webcams omit them from every frame (ITU-T T.81, annex K.3): DC and AC codes by table
/// number, luminance, then chrominance.
pub(super) fn standard_codes() -> ([Option<Code>; 4], [Option<Code>; 4]) {
    let code = |counts: [u8; 16], symbols: &[u8]| Some(Code { counts, symbols: symbols.to_vec() });
    (
        [code(DC_LUMA_COUNTS, &DC_SYMBOLS), code(DC_CHROMA_COUNTS, &DC_SYMBOLS), None, None],
        [code(AC_LUMA_COUNTS, &AC_LUMA_SYMBOLS), code(AC_CHROMA_COUNTS, &AC_CHROMA_SYMBOLS), None, None],
    )
}

const DC_LUMA_COUNTS: [u8; 16] = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
const DC_CHROMA_COUNTS: [u8; 16] = [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0];
const DC_SYMBOLS: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const AC_LUMA_COUNTS: [u8; 16] = [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125];
const AC_LUMA_SYMBOLS: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22,
    0x71, 0x14, 0x32, 0x81, 0x91, 0xA1, 0x08, 0x23, 0x42, 0xB1, 0xC1, 0x15, 0x52, 0xD1, 0xF0, 0x24, 0x33,
    0x62, 0x72, 0x82, 0x09, 0x0A, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x34,
    0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55,
    0x56, 0x57, 0x58, 0x59, 0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76,
    0x77, 0x78, 0x79, 0x7A, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96,
    0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5,
    0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4,
    0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF1,
    0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
];
const AC_CHROMA_COUNTS: [u8; 16] = [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119];
const AC_CHROMA_SYMBOLS: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13,
    0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xA1, 0xB1, 0xC1, 0x09, 0x23, 0x33, 0x52, 0xF0, 0x15, 0x62,
    0x72, 0xD1, 0x0A, 0x16, 0x24, 0x34, 0xE1, 0x25, 0xF1, 0x17, 0x18, 0x19, 0x1A, 0x26, 0x27, 0x28, 0x29,
    0x2A, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54,
    0x55, 0x56, 0x57, 0x58, 0x59, 0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75,
    0x76, 0x77, 0x78, 0x79, 0x7A, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94,
    0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3,
    0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2,
    0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA,
    0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
];
