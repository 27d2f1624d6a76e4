//! Scan headers, whether the scans together contain every coefficient, and whether the tables that they use are defined and
//! accepted by libjpeg.

use super::{Component, Frame, JpegDefect};
use crate::decode::jpeg::markers::restart_units;

/// Maximum number of tables of each kind.
const TABLES: usize = 4;
/// The largest category of a DC difference with 8-bit samples.
const MAX_DC_CATEGORY: u8 = 11;

/// A component of a scan: its index in the frame, the component, and the numbers of its DC and AC tables.
type Selection = (usize, Component, u8, u8);

/// A scan header.
#[derive(Debug)]
pub(super) struct Scan {
    selections: [Selection; 3],
    count: usize,
    /// First and last coefficient.
    first: u8,
    last: u8,
    /// Missing bits before and after this scan (successive approximation).
    before: u8,
    after: u8,
}

impl Scan {
    pub(super) fn read(frame: &Frame, body: &[u8]) -> Result<Self, JpegDefect> {
        let Some((&[count], [selectors @ .., first, last, bits])) = body.split_first_chunk::<1>() else {
            return Err(JpegDefect::Structure);
        };
        let (selectors, []) = selectors.as_chunks::<2>() else { return Err(JpegDefect::Structure) };
        let count = usize::from(count);
        if selectors.len() != count || !(1..=frame.components().len()).contains(&count) {
            return Err(JpegDefect::Structure);
        }
        let mut selections = [Selection::default(); 3];
        let mut rest = frame.components().iter().enumerate();
        for (selection, &[id, tables]) in selections.iter_mut().zip(selectors) {
            // In the frame's order, so that none is repeated.
            let (place, component) =
                rest.find(|(_, component)| component.id == id).ok_or(JpegDefect::Structure)?;
            *selection = (place, *component, tables >> 4, tables & 15);
        }
        let (before, after) = (bits >> 4, bits & 15);
        let scan = Self { selections, count, first: *first, last: *last, before, after };
        let sound = if frame.is_progressive() {
            let band = if scan.first == 0 {
                scan.last == 0
            } else {
                (scan.first..64).contains(&scan.last) && count == 1
            };
            band && after <= 13 && (before == 0 || before == after + 1)
        } else {
            (scan.first, scan.last, *bits) == (0, 63, 0)
        };
        if sound { Ok(scan) } else { Err(JpegDefect::Structure) }
    }

    /// Each component of the scan with the numbers of its DC and AC tables.
    pub(super) fn selections(&self) -> impl Iterator<Item = (Component, u8, u8)> {
        self.places().map(|(_, component, dc, ac)| (component, dc, ac))
    }

    /// Whether it has DC codes; a refinement only has bits.
    pub(super) fn uses_dc(&self) -> bool {
        self.first == 0 && self.before == 0
    }

    pub(super) fn uses_ac(&self) -> bool {
        self.last > 0
    }

    fn places(&self) -> impl Iterator<Item = Selection> {
        self.selections.into_iter().take(self.count)
    }

    /// Number of units that a restart interval counts in it.
    fn units(&self, frame: &Frame) -> u64 {
        let most = |factor: fn(&Component) -> u64| frame.components().iter().map(factor).max().unwrap_or(1);
        let most = (most(|component| component.across), most(|component| component.down));
        let [(_, first, ..), ..] = self.selections;
        let only = (self.count == 1).then_some((first.across, first.down));
        restart_units((frame.width, frame.height), 8, most, only)
    }
}

/// The coefficients of the scans so far.
#[derive(Debug)]
pub(super) struct Scans {
    count: u32,
    /// Missing bits of each coefficient of each component; `None` before its first scan.
    missing: [[Option<u8>; 64]; 3],
}

impl Default for Scans {
    fn default() -> Self {
        Self { count: 0, missing: [[None; 64]; 3] }
    }
}

impl Scans {
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Records a scan with this many restart markers in its data.
    pub(super) fn take(
        &mut self,
        frame: &Frame,
        scan: &Scan,
        restart_interval: u64,
        restarts: u64,
    ) -> Result<(), JpegDefect> {
        self.count += 1;
        let intervals = if restart_interval == 0 { 1 } else { scan.units(frame).div_ceil(restart_interval) };
        if restarts + 1 != intervals {
            return Err(JpegDefect::Incomplete);
        }
        let expected = if scan.before == 0 { None } else { Some(scan.before) };
        for (place, ..) in scan.places() {
            let coefficients = &mut self.missing[place];
            if scan.first > 0 && coefficients[0].is_none() {
                return Err(JpegDefect::Structure);
            }
            for missing in &mut coefficients[usize::from(scan.first)..=usize::from(scan.last)] {
                if *missing != expected {
                    return Err(JpegDefect::Structure);
                }
                *missing = Some(scan.after);
            }
        }
        Ok(())
    }

    /// Checks that every coefficient is complete.
    pub(super) fn check_complete(&self, frame: &Frame) -> Result<(), JpegDefect> {
        let coefficients = self.missing.iter().take(frame.components().len()).flatten();
        if coefficients.copied().all(|missing| missing == Some(0)) {
            Ok(())
        } else {
            Err(JpegDefect::Incomplete)
        }
    }
}

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

    /// Checks that all tables of a scan are defined. Baseline has only two Huffman tables per class.
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

/// Whether codes with these numbers per length exist such that none is a prefix of another and none is all ones.
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
