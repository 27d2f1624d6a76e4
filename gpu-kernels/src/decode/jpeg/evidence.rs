//! Whether the data of a JPEG is complete, from its whole stream. Only used for an image for which libjpeg-turbo issued a
//! warning.

use super::markers::{Markers, Segment, code, restart_units};

/// Properties of the whole stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The stream ends with an EOI.
    pub(super) has_end: bool,
    /// A scan has fewer restart markers than its size requires.
    pub(super) lacks_restarts: bool,
    /// The scans do not bring every coefficient of every component to full precision.
    pub(super) lacks_scans: bool,
}

pub(super) fn of(bytes: &[u8]) -> Evidence {
    let mut markers = Markers::new(bytes);
    let mut frame = Frame::default();
    let mut has_end = false;
    while let Some(segment) = markers.next_segment() {
        match segment.code {
            code::EOI => {
                has_end = true;
                break;
            }
            code::DRI => {
                if let [high, low] = segment.body {
                    frame.restart_interval = u64::from(u16::from_be_bytes([*high, *low]));
                }
            }
            code::SOS => {
                let (_, restarts) = markers.skip_entropy();
                frame.record_scan(segment.body, restarts);
            }
            _ if segment.is_frame() => frame.read(segment),
            _ => {}
        }
    }
    Evidence { has_end, lacks_restarts: frame.lacks_restarts, lacks_scans: !frame.is_fully_refined() }
}

#[derive(Debug, Default)]
struct Frame {
    progressive: bool,
    lossless: bool,
    width: u64,
    height: u64,
    components: Vec<Component>,
    restart_interval: u64,
    lacks_restarts: bool,
}

#[derive(Debug)]
struct Component {
    id: u8,
    /// Sampling factors.
    across: u64,
    down: u64,
    /// One bit per coefficient that some scan has brought to full precision.
    refined: u64,
}

impl Frame {
    fn read(&mut self, segment: Segment<'_>) {
        self.progressive = matches!(segment.code & 0x0F, 2 | 10);
        self.lossless = segment.code & 0x0F == 3;
        if let [_, h1, h0, w1, w0, _, components @ ..] = segment.body {
            self.height = u64::from(u16::from_be_bytes([*h1, *h0]));
            self.width = u64::from(u16::from_be_bytes([*w1, *w0]));
            let component = |&[id, sampling, _]: &[u8; 3]| Component {
                id,
                across: u64::from(sampling >> 4).max(1),
                down: u64::from(sampling & 0x0F).max(1),
                refined: 0,
            };
            self.components = components.as_chunks().0.iter().map(component).collect();
        }
    }

    /// Records a scan: its header, and the number of restart markers in its data.
    fn record_scan(&mut self, body: &[u8], restarts: u64) {
        let [_, selectors @ .., first, last, bits] = body else { return };
        let selected = |id: u8| selectors.as_chunks::<2>().0.iter().any(|selector| selector[0] == id);
        if self.restart_interval > 0 {
            let units = self.units(selectors.len() / 2, selected);
            self.lacks_restarts |= restarts + 1 < units.div_ceil(self.restart_interval);
        }
        let band = match (self.progressive, bits & 0x0F) {
            (false, _) => u64::MAX,
            (true, 0) if *last <= 63 && first <= last => (u64::MAX >> (63 - (last - first))) << first,
            (true, _) => 0,
        };
        for component in self.components.iter_mut().filter(|component| selected(component.id)) {
            component.refined |= band;
        }
    }

    /// Number of units that a restart interval counts in a scan of `count` components.
    fn units(&self, count: usize, selected: impl Fn(u8) -> bool) -> u64 {
        let side = if self.lossless { 1 } else { 8 };
        let across = self.components.iter().map(|component| component.across).max().unwrap_or(1);
        let down = self.components.iter().map(|component| component.down).max().unwrap_or(1);
        let only = self.components.iter().find(|component| count == 1 && selected(component.id));
        let only = only.map(|component| (component.across, component.down));
        restart_units((self.width, self.height), side, (across, down), only)
    }

    fn is_fully_refined(&self) -> bool {
        self.components.iter().all(|component| component.refined == u64::MAX)
    }
}
