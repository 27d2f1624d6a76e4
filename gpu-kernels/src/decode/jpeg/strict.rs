//! Strict parsing of a JPEG (ITU-T T.81, annex B), for decoders that do not report what is wrong with a file: any irregularity
//! in its segments is a [`JpegDefect`], even where libjpeg-turbo accepts it.

mod scans;

use super::markers::{Markers, Segment, code};
use scans::{Scan, Scans, Tables};

/// The maximum side in libjpeg.
const MAX_SIDE: u16 = 65_500;

/// A defect of a JPEG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode) enum JpegDefect {
    /// Its segments or their parameters are invalid.
    Structure,
    /// A table is invalid, missing, or has 16 bits.
    Tables,
    /// Its end, a scan or a restart marker is missing.
    Incomplete,
}

/// A Huffman-coded JPEG of one or three components without defects in its segments.
#[derive(Clone, Copy, Debug)]
pub(in crate::decode) struct StrictJpeg {
    /// Baseline (SOF0), neither extended nor progressive.
    pub(in crate::decode) baseline: bool,
    /// Sampling factors of each component: across in the high half of the byte, down in the low.
    pub(in crate::decode) sampling: [u8; 3],
    pub(in crate::decode) colour: Colour,
    pub(in crate::decode) scans: u32,
    /// Position after its EOI.
    pub(in crate::decode) end: usize,
}

/// Parses a complete JPEG, which begins with its SOI.
pub(in crate::decode) fn read_strictly(bytes: &[u8]) -> Result<StrictJpeg, JpegDefect> {
    let mut markers = Markers::new(bytes);
    let mut tables = Tables::default();
    let mut colours = ColourMarkers::default();
    let mut frame: Option<Frame> = None;
    let mut scans = Scans::default();
    loop {
        let Segment { code, body } = adjoining_segment(bytes, &mut markers)?;
        match (code, &frame) {
            // The colours are fixed when the first scan begins.
            (code::APP0 | code::APP14, _) if scans.count() > 0 => return Err(JpegDefect::Structure),
            (code::APP0..=code::APP15 | code::COM, _) => colours.read(code, body)?,
            (code::DQT, _) => tables.read_quantization(body)?,
            (code::DHT, _) => tables.read_huffman(body)?,
            (code::DRI, _) => tables.read_restart_interval(body)?,
            (code::SOF0 | code::SOF1 | code::SOF2, None) => frame = Some(Frame::read(code, body)?),
            (code::SOS, Some(frame)) => {
                let scan = Scan::read(frame, body)?;
                tables.check(frame, &scan)?;
                let (_, restarts) = markers.skip_entropy();
                scans.take(frame, &scan, tables.restart_interval, restarts)?;
            }
            (code::EOI, Some(frame)) => {
                colours.check_profile()?;
                scans.check_complete(frame)?;
                return Ok(StrictJpeg {
                    baseline: frame.is_baseline(),
                    sampling: frame.sampling(),
                    colour: colours.of(frame),
                    scans: scans.count(),
                    end: markers.position(),
                });
            }
            _ => return Err(JpegDefect::Structure),
        }
    }
}

/// The next segment, which must begin where the last one ended, without fill bytes.
fn adjoining_segment<'a>(bytes: &[u8], markers: &mut Markers<'a>) -> Result<Segment<'a>, JpegDefect> {
    match bytes.get(markers.position()..) {
        Some([0xFF, 0 | 0xFF, ..]) => Err(JpegDefect::Structure),
        Some([0xFF, _, ..]) => markers.next_segment().ok_or(JpegDefect::Incomplete),
        Some([_, _, ..]) => Err(JpegDefect::Structure),
        _ => Err(JpegDefect::Incomplete),
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Component {
    id: u8,
    /// Sampling factors, 1 to 4.
    across: u64,
    down: u64,
    /// Number of its quantization table.
    quantization: u8,
}

/// The frame header of a sequential or progressive JPEG with Huffman coding.
#[derive(Clone, Copy, Debug)]
struct Frame {
    code: u8,
    width: u64,
    height: u64,
    components: [Component; 3],
    count: usize,
}

impl Frame {
    fn read(code: u8, body: &[u8]) -> Result<Self, JpegDefect> {
        let &[8, h1, h0, w1, w0, count @ (1 | 3), ref components @ ..] = body else {
            return Err(JpegDefect::Structure);
        };
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        let (specifications, []) = components.as_chunks::<3>() else { return Err(JpegDefect::Structure) };
        let sides = 1..=MAX_SIDE;
        if specifications.len() != usize::from(count) || !sides.contains(&width) || !sides.contains(&height) {
            return Err(JpegDefect::Structure);
        }
        let mut components = [Component::default(); 3];
        for (index, &[id, sampling, quantization]) in specifications.iter().enumerate() {
            let (across, down) = (sampling >> 4, sampling & 15);
            let repeated = specifications.iter().take(index).any(|other| other[0] == id);
            if repeated || !(1..=4).contains(&across) || !(1..=4).contains(&down) {
                return Err(JpegDefect::Structure);
            }
            let (across, down) = (u64::from(across), u64::from(down));
            components[index] = Component { id, across, down, quantization };
        }
        let (width, height) = (u64::from(width), u64::from(height));
        Ok(Self { code, width, height, components, count: usize::from(count) })
    }

    fn components(&self) -> &[Component] {
        &self.components[..self.count]
    }

    fn is_baseline(&self) -> bool {
        self.code == code::SOF0
    }

    fn is_progressive(&self) -> bool {
        self.code == code::SOF2
    }

    fn sampling(&self) -> [u8; 3] {
        self.components.map(|component| (component.across << 4 | component.down) as u8)
    }
}

/// The colour model of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode) enum Colour {
    Grey,
    YCbCr,
    /// RGB, or ambiguous.
    Other,
}

/// The markers from which libjpeg derives the colours.
#[derive(Debug, Default)]
struct ColourMarkers {
    jfif: bool,
    /// The colour transform of Adobe's marker: 0 is none, 1 YCbCr, 2 YCCK.
    adobe: Option<u8>,
    /// An unknown JFIF version, a truncated Adobe marker, or more than one.
    unclear: bool,
    /// Number of ICC profile parts read, and number declared.
    icc_parts: (u8, u8),
}

impl ColourMarkers {
    fn read(&mut self, code: u8, body: &[u8]) -> Result<(), JpegDefect> {
        match code {
            code::APP0 if body.starts_with(b"JFIF\0") => {
                self.jfif = true;
                self.unclear |= body.len() < 14 || body[5] != 1;
            }
            code::APP14 if body.starts_with(b"Adobe") => {
                self.unclear |= self.adobe.is_some() || body.len() < 12;
                self.adobe = body.get(11).copied();
            }
            code::APP2 => {
                if let Some(&[number, count, ..]) = body.strip_prefix(b"ICC_PROFILE\0") {
                    let (came, expected) = self.icc_parts;
                    if number != came.wrapping_add(1) || (came > 0 && count != expected) || body.len() <= 14 {
                        return Err(JpegDefect::Structure);
                    }
                    self.icc_parts = (number, count);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// libjpeg-turbo warns about an incomplete ICC profile, and the image is then rejected.
    fn check_profile(&self) -> Result<(), JpegDefect> {
        let (came, expected) = self.icc_parts;
        if came == expected { Ok(()) } else { Err(JpegDefect::Structure) }
    }

    /// YCbCr if all indications agree. libjpeg uses the JFIF marker first, then Adobe's, then the components' numbers; a
    /// decoder with another order must not see another picture.
    fn of(&self, frame: &Frame) -> Colour {
        if self.unclear {
            return Colour::Other;
        }
        let &[first, second, third] = frame.components() else { return Colour::Grey };
        let ids = [first.id, second.id, third.id];
        match (self.adobe, self.jfif) {
            _ if ids == *b"RGB" => Colour::Other,
            (Some(1), _) | (None, true) => Colour::YCbCr,
            (None, false) if ids == [1, 2, 3] => Colour::YCbCr,
            _ => Colour::Other,
        }
    }
}
