//! Scan headers, and whether the scans together bring every coefficient.

use super::JpegDefect;
use super::frame::{Component, Frame};

/// One component of a scan: its place in the frame, itself, and the numbers of its DC and AC tables.
type Selection = (usize, Component, u8, u8);

/// A scan header.
#[derive(Debug)]
pub(super) struct Scan {
    selections: [Selection; 3],
    count: usize,
    /// First and last coefficient.
    first: u8,
    last: u8,
    /// Bits that are missing before and after this scan (successive approximation).
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
            // In the frame's order, so that none comes twice.
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

    /// Whether it has DC codes; a refinement has bits alone.
    pub(super) fn uses_dc(&self) -> bool {
        self.first == 0 && self.before == 0
    }

    pub(super) fn uses_ac(&self) -> bool {
        self.last > 0
    }

    fn places(&self) -> impl Iterator<Item = Selection> {
        self.selections.into_iter().take(self.count)
    }

    /// How many units a restart interval counts in it (T.81, A.2): blocks of the only component, or else MCUs.
    fn units(&self, frame: &Frame) -> u64 {
        let most = |factor: fn(&Component) -> u64| frame.components().iter().map(factor).max().unwrap_or(1);
        let (across, down) = (most(|component| component.across), most(|component| component.down));
        if self.count == 1 {
            let (_, only, ..) = self.selections[0];
            (frame.width * only.across).div_ceil(across).div_ceil(8)
                * (frame.height * only.down).div_ceil(down).div_ceil(8)
        } else {
            frame.width.div_ceil(8 * across) * frame.height.div_ceil(8 * down)
        }
    }
}

/// What the scans so far have brought.
#[derive(Debug)]
pub(super) struct Scans {
    count: u32,
    /// Bits that are still missing of each coefficient of each component; `None` before its first scan.
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

    /// Takes note of a scan whose data holds so many restart markers.
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

    /// Whether every coefficient is there to its last bit.
    pub(super) fn check_complete(&self, frame: &Frame) -> Result<(), JpegDefect> {
        let coefficients = self.missing.iter().take(frame.components().len()).flatten();
        if coefficients.copied().all(|missing| missing == Some(0)) {
            Ok(())
        } else {
            Err(JpegDefect::Incomplete)
        }
    }
}
