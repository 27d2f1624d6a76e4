//! Reads a JPEG by the book (ITU-T T.81, annex B), for decoders that do not say what is wrong with a file: whatever is odd
//! about its segments is an [`JpegDefect`], even where libjpeg-turbo lets it pass.

mod colour;
mod frame;
mod scans;
mod tables;

pub(in crate::decode) use colour::Colour;

use super::markers::{Markers, Segment, code};
use colour::ColourMarkers;
use frame::Frame;
use scans::{Scan, Scans};
use tables::Tables;

/// What is odd about a JPEG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode) enum JpegDefect {
    /// Its segments, or what they say.
    Structure,
    /// A table that is unsound, missing, or of 16 bits.
    Tables,
    /// Something is not there: its end, a scan, a restart marker.
    Incomplete,
}

/// A Huffman-coded JPEG of one or three components, about whose segments nothing is odd.
#[derive(Clone, Copy, Debug)]
pub(in crate::decode) struct StrictJpeg {
    /// SOF0, neither extended nor progressive.
    pub(in crate::decode) baseline: bool,
    /// Sampling factors of each component: across in the high half of the byte, down in the low.
    pub(in crate::decode) sampling: [u8; 3],
    pub(in crate::decode) colour: Colour,
    pub(in crate::decode) scans: u32,
    /// Where its EOI ends.
    pub(in crate::decode) end: usize,
}

/// Reads a JPEG, which begins with its SOI, from end to end.
pub(in crate::decode) fn read_strictly(bytes: &[u8]) -> Result<StrictJpeg, JpegDefect> {
    let mut markers = Markers::new(bytes);
    let mut tables = Tables::default();
    let mut colours = ColourMarkers::default();
    let mut frame: Option<Frame> = None;
    let mut scans = Scans::default();
    loop {
        let Segment { code, body } = adjoining_segment(bytes, &mut markers)?;
        match (code, &frame) {
            // Colours are settled when the first scan begins.
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

/// The next segment, which must begin where the last one ends, without fill bytes.
fn adjoining_segment<'a>(bytes: &[u8], markers: &mut Markers<'a>) -> Result<Segment<'a>, JpegDefect> {
    match bytes.get(markers.position()..) {
        Some([0xFF, 0 | 0xFF, ..]) => Err(JpegDefect::Structure),
        Some([0xFF, _, ..]) => markers.next_segment().ok_or(JpegDefect::Incomplete),
        Some([_, _, ..]) => Err(JpegDefect::Structure),
        _ => Err(JpegDefect::Incomplete),
    }
}
