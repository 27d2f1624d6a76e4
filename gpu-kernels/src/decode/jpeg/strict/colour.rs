//! What the markers and the frame say of a JPEG's colours.

use super::JpegDefect;
use super::frame::Frame;
use crate::decode::jpeg::markers::code;

/// What the components of a frame stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode) enum Colour {
    Grey,
    YCbCr,
    /// RGB, or not to be told for sure.
    Other,
}

/// The markers by which libjpeg tells the colours.
#[derive(Debug, Default)]
pub(super) struct ColourMarkers {
    jfif: bool,
    /// The colour transform of Adobe's marker: 0 is none, 1 YCbCr, 2 YCCK.
    adobe: Option<u8>,
    /// A JFIF version that nobody knows, half a marker of Adobe's, or more than one.
    unclear: bool,
    /// Parts of the ICC profile that have come, and how many there are to be.
    icc_parts: (u8, u8),
}

impl ColourMarkers {
    pub(super) fn read(&mut self, code: u8, body: &[u8]) -> Result<(), JpegDefect> {
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

    /// libjpeg-turbo warns of an ICC profile that is not whole, and then the image is refused.
    pub(super) fn check_profile(&self) -> Result<(), JpegDefect> {
        let (came, expected) = self.icc_parts;
        if came == expected { Ok(()) } else { Err(JpegDefect::Structure) }
    }

    /// YCbCr where every sign says so. libjpeg goes by the JFIF marker first, then by Adobe's, then by the components'
    /// numbers; a decoder with another order must not see another picture.
    pub(super) fn of(&self, frame: &Frame) -> Colour {
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
