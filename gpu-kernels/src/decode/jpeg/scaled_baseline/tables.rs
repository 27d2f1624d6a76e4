//! Huffman tables: one symbol at a time where values are wanted, as many as fit where they are not.

use super::bits::{Bits, extend};
use super::frame::{Component, Frame};

/// Bits that one look-up sees. Two tables of this size stay in a first-level cache.
const SEEN: usize = 12;
/// The end of a block is among the symbols skipped.
const ENDS: u32 = 1 << 16;

/// A code as DHT gives it: how many codes of each length, and their symbols in order.
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
    /// By the next [`SEEN`] bits: bits of all whole symbols in them and of their values (low byte), coefficients that they
    /// cover (second byte), [`ENDS`] if an EOB is the last of them; 0 where not even one is whole.
    several: Vec<u32>,
    /// By the next [`SEEN`] bits, where an AC symbol and its value are whole in them: the value (upper 16 bits), the run
    /// (second byte) and the bits of both (low byte); 0 elsewhere.
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
            // No code is all ones (T.81, C.2), which libjpeg-turbo insists on.
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

    /// Walks over the AC symbols in a window as far as their codes are whole. A last value may reach beyond the window,
    /// since a value that is skipped need not be seen.
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

    /// The next AC coefficient: how many zeros come before it, and its value. A run of 64 stands for an EOB, and a ZRL is
    /// 15 zeros before a zero. Needs a refilled reader.
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
            // A window may reach into the next block only where this one could end within it without an EOB.
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

/// The tables of one image, all there.
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

    /// Makes the tables of one component, by their numbers, as these codes give them.
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

    /// A DC and an AC table that were made.
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
