//! Makes a JPEG's bytes unique without touching its pixels: a comment segment with a counter.

/// Length in bytes of the comment segment: marker, length, and 32 hexadecimal digits.
pub const TAG_LEN: usize = 4 + 32;

/// Why a file cannot be tagged.
#[derive(Debug, PartialEq, Eq)]
pub enum TagError {
    /// The file does not begin with a JPEG's start-of-image marker.
    NotJpeg,
}

impl std::fmt::Display for TagError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not a JPEG: only a JPEG can be made unique (use --repeat for other kinds)")
    }
}

impl std::error::Error for TagError {}

/// The COM segment (marker FF FE) that says `run` and `counter` in hexadecimal.
#[must_use]
pub fn tag_segment(run: u64, counter: u64) -> [u8; TAG_LEN] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut segment = [0; TAG_LEN];
    // The length counts itself, two bytes, but not the marker.
    segment[..4].copy_from_slice(&[0xff, 0xfe, 0, (TAG_LEN - 2) as u8]);
    for (place, digit) in segment[4..].iter_mut().enumerate() {
        let (value, place) = if place < 16 { (run, place) } else { (counter, place - 16) };
        *digit = DIGITS[(value >> (60 - 4 * place)) as usize & 0xf];
    }
    segment
}

/// A copy of `jpeg` with the segment put in after its start-of-image marker.
///
/// # Errors
/// `TagError::NotJpeg` when the file is no JPEG.
pub fn with_tag(jpeg: &[u8], run: u64, counter: u64) -> Result<Vec<u8>, TagError> {
    let Some((start @ [0xff, 0xd8], rest)) = jpeg.split_first_chunk() else {
        return Err(TagError::NotJpeg);
    };
    Ok([start, tag_segment(run, counter).as_slice(), rest].concat())
}
