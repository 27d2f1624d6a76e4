//! Checks every Huffman code of a baseline JPEG without decoding its values: whether the data is complete.

use super::bits::{Bits, EntropyData};
use super::frame::{read_codes, restart_interval};
use super::tables::TableCache;
use crate::decode::jpeg::markers::{Markers, Segment, code};

/// Reuses its tables and buffers between images.
#[derive(Debug, Default)]
pub(in crate::decode) struct EntropyWalk {
    tables: TableCache,
    data: EntropyData,
}

/// Blocks of a component in an MCU, and the numbers of its DC and AC tables.
#[derive(Clone, Copy, Default)]
struct Part {
    blocks: usize,
    dc: usize,
    ac: usize,
}

/// One scan of all components.
struct Plan<'a> {
    parts: [Part; 3],
    count: usize,
    mcus: usize,
    /// MCUs between restart markers; 0 for none.
    restart_interval: usize,
    scan: &'a [u8],
}

impl Plan<'_> {
    fn segments(&self) -> usize {
        if self.restart_interval == 0 { 1 } else { self.mcus.div_ceil(self.restart_interval) }
    }
}

impl EntropyWalk {
    pub(in crate::decode) fn retained_bytes(&self) -> usize {
        self.data.capacity()
    }

    /// `None` if the JPEG does not have a single sequential scan, a code is unknown, or the codes of an interval do not end
    /// where its data does.
    pub(in crate::decode) fn run(&mut self, bytes: &[u8]) -> Option<()> {
        let plan = self.plan(bytes)?;
        self.data.collect(plan.scan, plan.segments())?;
        let mut segments = self.data.segments();
        let mut left = plan.mcus;
        while left > 0 {
            let mut bits = segments.next()?;
            let interval = if plan.restart_interval == 0 { left } else { left.min(plan.restart_interval) };
            for _ in 0..interval {
                self.skip_mcu(&plan, &mut bits)?;
            }
            bits.is_used_up().then_some(())?;
            left -= interval;
        }
        segments.next().is_none().then_some(())
    }

    #[inline(always)]
    fn skip_mcu(&self, plan: &Plan<'_>, bits: &mut Bits<'_>) -> Option<()> {
        for part in &plan.parts[..plan.count] {
            let (dc, ac) = self.tables.pair(part.dc, part.ac)?;
            for _ in 0..part.blocks {
                bits.refill()?;
                let size = usize::from(dc.symbol(bits)?);
                (size <= 11).then_some(())?;
                bits.consume(size);
                ac.skip_rest(bits, 1)?;
            }
        }
        Some(())
    }

    fn plan<'a>(&mut self, bytes: &'a [u8]) -> Option<Plan<'a>> {
        let mut markers = Markers::new(bytes);
        let (mut dc, mut ac) = ([None, None, None, None], [None, None, None, None]);
        let (mut interval, mut frame) = (0, None);
        let scan_header = loop {
            let Segment { code, body } = markers.next_segment()?;
            match code {
                code::SOF0 | code::SOF1 => frame = Some(body),
                code::DHT => read_codes(body, &mut dc, &mut ac)?,
                code::DRI => interval = restart_interval(body)?,
                code::SOS => break body,
                code::SOF2..=code::SOF15 | code::EOI | code::SOI => return None,
                _ => {}
            }
        };
        let &[8, h1, h0, w1, w0, count @ (1 | 3), ref components @ ..] = frame? else { return None };
        let &[in_scan, ref selectors @ .., 0, 63, 0] = scan_header else { return None };
        let (components, selectors) = (components.as_chunks::<3>().0, selectors.as_chunks::<2>().0);
        let count = usize::from(count);
        let counts = [usize::from(in_scan), components.len(), selectors.len()];
        (counts == [count; 3]).then_some(())?;
        let mut parts = [Part::default(); 3];
        let (mut across, mut down) = (1, 1);
        for ((part, &[id, sampling, _]), &[selected, tables]) in
            parts.iter_mut().zip(components).zip(selectors)
        {
            (id == selected).then_some(())?;
            let (dc_table, ac_table) = (usize::from(tables >> 4), usize::from(tables & 15));
            self.tables.renew(&dc, &ac, dc_table, ac_table)?;
            // A single component is not interleaved: its MCU is one block.
            let factors = if count == 1 { 0x11 } else { usize::from(sampling) };
            across = across.max(factors >> 4);
            down = down.max(factors & 15);
            *part = Part { blocks: (factors >> 4) * (factors & 15), dc: dc_table, ac: ac_table };
        }
        let mcus = |side: [u8; 2], factor: usize| usize::from(u16::from_be_bytes(side)).div_ceil(8 * factor);
        Some(Plan {
            parts,
            count,
            mcus: mcus([w1, w0], across) * mcus([h1, h0], down),
            restart_interval: interval,
            scan: bytes.get(markers.position()..)?,
        })
    }
}
