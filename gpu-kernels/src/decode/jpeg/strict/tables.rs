//! Which tables a JPEG has defined, and whether libjpeg would take them.

use super::JpegDefect;
use super::frame::Frame;
use super::scans::Scan;

/// Tables of each kind that there can be.
const TABLES: usize = 4;
/// The largest category of a DC difference with 8-bit samples.
const MAX_DC_CATEGORY: u8 = 11;

/// The tables that were defined so far.
#[derive(Debug, Default)]
pub(super) struct Tables {
    quantization: [bool; TABLES],
    dc: [bool; TABLES],
    ac: [bool; TABLES],
    /// Units between restart markers; 0 for none.
    pub(super) restart_interval: u64,
}

impl Tables {
    pub(super) fn read_quantization(&mut self, body: &[u8]) -> Result<(), JpegDefect> {
        let (tables, []) = body.as_chunks::<65>() else { return Err(JpegDefect::Tables) };
        for [number, ..] in tables {
            define(&mut self.quantization, *number)?;
        }
        Ok(())
    }

    pub(super) fn read_huffman(&mut self, mut body: &[u8]) -> Result<(), JpegDefect> {
        while let Some((&head, rest)) = body.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or(JpegDefect::Tables)?;
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let (symbols, rest) = rest.split_at_checked(total).ok_or(JpegDefect::Tables)?;
            let (class, number) = (head >> 4, head & 15);
            let sound = match class {
                0 => symbols.iter().all(|&symbol| symbol <= MAX_DC_CATEGORY),
                _ => true,
            };
            if !sound || !is_prefix_code(counts) {
                return Err(JpegDefect::Tables);
            }
            match class {
                0 => define(&mut self.dc, number)?,
                1 => define(&mut self.ac, number)?,
                _ => return Err(JpegDefect::Tables),
            }
            body = rest;
        }
        Ok(())
    }

    pub(super) fn read_restart_interval(&mut self, body: &[u8]) -> Result<(), JpegDefect> {
        let &[high, low] = body else { return Err(JpegDefect::Structure) };
        self.restart_interval = u64::from(u16::from_be_bytes([high, low]));
        Ok(())
    }

    /// Whether all tables are there that a scan uses. Baseline has but two Huffman tables of a class.
    pub(super) fn check(&self, frame: &Frame, scan: &Scan) -> Result<(), JpegDefect> {
        let defined = |tables: &[bool; TABLES], number: u8| tables.get(usize::from(number)) == Some(&true);
        let all = scan.selections().all(|(component, dc, ac)| {
            defined(&self.quantization, component.quantization)
                && (!scan.uses_dc() || defined(&self.dc, dc))
                && (!scan.uses_ac() || defined(&self.ac, ac))
                && (!frame.is_baseline() || dc.max(ac) < 2)
        });
        if all { Ok(()) } else { Err(JpegDefect::Tables) }
    }
}

fn define(tables: &mut [bool; TABLES], number: u8) -> Result<(), JpegDefect> {
    *tables.get_mut(usize::from(number)).ok_or(JpegDefect::Tables)? = true;
    Ok(())
}

/// Whether so many codes of each length exist, of which none is a prefix of another and none is all ones.
fn is_prefix_code(counts: &[u8; 16]) -> bool {
    let (mut next, mut total) = (0u32, 0);
    for (length, &count) in (1..).zip(counts) {
        next += u32::from(count);
        total += u32::from(count);
        if count > 0 && next >= 1 << length {
            return false;
        }
        next <<= 1;
    }
    (1..=256).contains(&total)
}
