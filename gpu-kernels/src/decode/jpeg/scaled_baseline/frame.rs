//! The headers for the scaled decoder: frame, quantization, Huffman codes, restart interval, scan.

use super::super::markers::{Markers, Segment, code};
use super::tables::{Code, standard_codes};

/// A plain baseline frame.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) components: [Component; 3],
    /// 1 for 4:4:4, 2 for 4:2:0: luma blocks across and down an MCU.
    pub(super) subsampling: usize,
    pub(super) mcus_per_row: usize,
    pub(super) mcu_rows: usize,
    /// MCUs between restart markers; 0 for none.
    pub(super) restart_interval: usize,
    pub(super) dc: [Option<Code>; 4],
    pub(super) ac: [Option<Code>; 4],
    /// From the first byte of entropy-coded data to the end of the file.
    pub(super) scan: &'a [u8],
}

/// One component of the frame.
#[derive(Debug)]
pub(super) struct Component {
    pub(super) index: usize,
    /// Blocks across and down an MCU.
    pub(super) across: usize,
    /// Quantization steps in zigzag order.
    pub(super) quant: [i32; 64],
    /// Numbers of the Huffman tables.
    pub(super) dc: usize,
    pub(super) ac: usize,
}

impl<'a> Frame<'a> {
    /// Reads the headers of a plain frame; `None` for every other.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut markers = Markers::new(bytes);
        let mut quants = [None; 4];
        let (mut dc, mut ac) = standard_codes();
        let (mut interval, mut start, mut colours) = (0, None, None);
        loop {
            let Segment { code, body } = markers.next_segment()?;
            match code {
                code::SOF0 | code::SOF1 => start = Some(body),
                code::DHT => read_codes(body, &mut dc, &mut ac)?,
                code::DQT => read_quants(body, &mut quants)?,
                code::DRI => interval = restart_interval(body)?,
                // Adobe's marker says whether the components are YCbCr (1).
                code::APP14 if body.starts_with(b"Adobe") => colours = Some(*body.get(11)? == 1),
                code::APP0 if body.starts_with(b"JFIF\0") && colours.is_none() => colours = Some(true),
                code::SOS => {
                    let (start, scan) = (start?, bytes.get(markers.position()..)?);
                    let frame = Self::assemble(start, body, &quants, (dc, ac), scan)?;
                    // Without either marker libjpeg uses the components' numbers; 1, 2, 3 are YCbCr.
                    let ycc = colours.unwrap_or_else(|| [start[6], start[9], start[12]] == [1, 2, 3]);
                    return ycc.then_some(Self { restart_interval: interval, ..frame });
                }
                code::SOF2..=code::SOF15 | code::EOI | code::SOI => return None,
                _ => {}
            }
        }
    }

    /// Number of segments between restart markers in the scan.
    pub(super) fn segments(&self) -> usize {
        let mcus = self.mcus_per_row * self.mcu_rows;
        if self.restart_interval == 0 { 1 } else { mcus.div_ceil(self.restart_interval) }
    }

    fn assemble(
        start: &[u8],
        scan_header: &[u8],
        quants: &[Option<[i32; 64]>; 4],
        (dc, ac): ([Option<Code>; 4], [Option<Code>; 4]),
        scan: &'a [u8],
    ) -> Option<Self> {
        let &[8, h1, h0, w1, w0, 3, y, y_sampling, y_quant, b, 0x11, b_quant, r, 0x11, r_quant] = start
        else {
            return None;
        };
        let subsampling = match y_sampling {
            0x11 => 1,
            0x22 => 2,
            _ => return None,
        };
        let &[3, sy, ty, sb, tb, sr, tr, 0, 63, 0] = scan_header else { return None };
        ([sy, sb, sr] == [y, b, r]).then_some(())?;
        let component = |index, across, quant: u8, tables: u8| {
            let quant = (*quants.get(usize::from(quant))?)?;
            let (dc, ac) = (usize::from(tables >> 4), usize::from(tables & 15));
            (dc < 4 && ac < 4).then_some(Component { index, across, quant, dc, ac })
        };
        let components = [
            component(0, subsampling, y_quant, ty)?,
            component(1, 1, b_quant, tb)?,
            component(2, 1, r_quant, tr)?,
        ];
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        let mcus = |side: u16| usize::from(side).div_ceil(8 * subsampling);
        Some(Self {
            components,
            subsampling,
            mcus_per_row: mcus(width),
            mcu_rows: mcus(height),
            restart_interval: 0,
            dc,
            ac,
            scan,
        })
    }
}

fn read_quants(mut body: &[u8], quants: &mut [Option<[i32; 64]>; 4]) -> Option<()> {
    while let Some((&head, rest)) = body.split_first() {
        // The high nibble is 1 for 16-bit steps, which baseline does not have.
        let steps = rest.first_chunk::<64>()?;
        *quants.get_mut(usize::from(head))? = Some(steps.map(i32::from));
        body = &rest[64..];
    }
    Some(())
}

pub(super) fn restart_interval(body: &[u8]) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(*body.first_chunk()?)))
}

pub(super) fn read_codes(
    mut body: &[u8],
    dc: &mut [Option<Code>; 4],
    ac: &mut [Option<Code>; 4],
) -> Option<()> {
    while let Some((&head, rest)) = body.split_first() {
        let counts = *rest.first_chunk::<16>()?;
        let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
        let symbols = rest.get(16..16 + total)?.to_vec();
        let class = match head >> 4 {
            // libjpeg-turbo rejects sizes of more bits even if no code is assigned to them.
            0 if symbols.iter().all(|&size| size <= 15) => &mut *dc,
            1 => &mut *ac,
            _ => return None,
        };
        *class.get_mut(usize::from(head & 15))? = Some(Code { counts, symbols });
        body = &rest[16 + total..];
    }
    Some(())
}
