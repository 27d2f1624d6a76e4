//! Detects the format of an image from its first bytes, and describes data in other formats; the set of accepted formats.

use std::fmt;

use super::DecodeError;
use crate::image::ImageFormat;

/// Detects the format of `bytes` from their content.
///
/// # Errors
/// [`DecodeError::EmptyImage`] and [`DecodeError::UnsupportedType`].
pub fn sniff(bytes: &[u8]) -> Result<ImageFormat, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::EmptyImage);
    }
    let unknown =
        || DecodeError::UnsupportedType { looks_like: resemblance(bytes), accepted: FormatSet::ALL };
    format_of(bytes).ok_or_else(unknown)
}

fn format_of(bytes: &[u8]) -> Option<ImageFormat> {
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => Some(ImageFormat::Jpeg),
        [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some(ImageFormat::Png),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(ImageFormat::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(ImageFormat::Gif),
        // The second pair is BigTIFF.
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(ImageFormat::Tiff),
        // Two letters do not distinguish a bitmap from text: the size of its header must match as well.
        [b'B', b'M', _, _, _, _, _, _, _, _, _, _, _, _, 12 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0, ..] => {
            Some(ImageFormat::Bmp)
        }
        _ => None,
    }
}

fn resemblance(bytes: &[u8]) -> &'static str {
    match bytes {
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => iso_media(brand),
        [0xFF, 0x0A, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => "JPEG XL",
        [0xFF, 0x4F, 0xFF, 0x51, ..] | [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] => "JPEG 2000",
        [b'%', b'P', b'D', b'F', ..] => "a PDF document",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop document",
        [0, 0, 1 | 2, 0, ..] => "a Windows icon",
        [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..] => "a PNM image",
        [b'P', b'K', 3 | 5, 4 | 6, ..] => "a ZIP archive",
        [0x1F, 0x8B, ..] => "gzip data",
        [0x1A, 0x45, 0xDF, 0xA3, ..] => "a Matroska or WebM video",
        [b'R', b'I', b'F', b'F', ..] => "a RIFF file that is not WebP",
        _ => text(bytes).unwrap_or("none of the known image types"),
    }
}

/// Files of the ISO base media family (ISO/IEC 14496-12) have a brand of four letters.
fn iso_media(brand: &[u8]) -> &'static str {
    match brand.get(..4) {
        Some(b"avif" | b"avis") => "AVIF",
        Some(b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1") => {
            "HEIC (set the camera to \"most compatible\", or convert it to JPEG)"
        }
        Some(b"crx ") => "a Canon raw photo",
        _ => "an MP4 or QuickTime video",
    }
}

fn text(bytes: &[u8]) -> Option<&'static str> {
    let head = bytes.get(..bytes.len().min(256))?;
    let head = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start();
    let starts = |tag: &[u8]| head.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    let contains = |tag: &[u8]| head.windows(tag.len()).any(|part| part.eq_ignore_ascii_case(tag));
    if head.iter().any(|&byte| byte < 0x20 && !byte.is_ascii_whitespace()) {
        return None;
    }
    Some(match head.first()? {
        b'<' if contains(b"<svg") => "an SVG drawing",
        b'<' if starts(b"<!doctype html") || contains(b"<html") => "an HTML page",
        b'<' => "XML or HTML text",
        b'{' | b'[' => "JSON text",
        b'd' if starts(b"data:image/") => "a data: URL (send the bytes, or base64 without the prefix)",
        _ if std::str::from_utf8(head).map_or_else(|error| error.error_len().is_none(), |_| true) => "text",
        _ => return None,
    })
}

/// A set of formats, displayed as an enumeration: `JPEG, PNG or WebP`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FormatSet(u8);

impl FormatSet {
    /// All supported formats.
    pub const ALL: Self = Self((1 << ImageFormat::ALL.len()) - 1);

    /// Whether the set contains `format`.
    pub fn contains(self, format: ImageFormat) -> bool {
        self.0 & Self::bit(format) != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn bit(format: ImageFormat) -> u8 {
        1 << format as u8
    }
}

impl FromIterator<ImageFormat> for FormatSet {
    fn from_iter<I: IntoIterator<Item = ImageFormat>>(formats: I) -> Self {
        Self(formats.into_iter().fold(0, |set, format| set | Self::bit(format)))
    }
}

impl fmt::Display for FormatSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles: Vec<_> = ImageFormat::ALL
            .into_iter()
            .filter(|&format| self.contains(format))
            .map(ImageFormat::title)
            .collect();
        match titles.split_last() {
            None => f.write_str("nothing"),
            Some((last, [])) => f.write_str(last),
            Some((last, rest)) => write!(f, "{} or {last}", rest.join(", ")),
        }
    }
}

impl fmt::Debug for FormatSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(ImageFormat::ALL.into_iter().filter(|&format| self.contains(format))).finish()
    }
}
