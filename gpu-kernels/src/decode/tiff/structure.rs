//! The geometry of a TIFF's first image, checked against its size before a decoder reads it.
//!
//! A strip or tile may declare any size, and each has its own compressed data, so a file of a few kilobytes can demand
//! gigabytes or hours. Here the parts must match the image's size, and their data must not exceed the file's.

use super::super::{DecodeError, DecodeLimits};
use crate::image::ImageFormat;

/// Limit on the entries of a directory. Cameras write fewer than fifty.
const MAX_ENTRIES: u64 = 1024;
/// Limit on the strips or tiles of an image.
const MAX_PARTS: u64 = 1 << 16;
/// Samples of tiles beyond the image, which pad the last tile of each row.
const PADDING: u64 = 16 << 20;

mod tag {
    pub(super) const WIDTH: u16 = 256;
    pub(super) const HEIGHT: u16 = 257;
    pub(super) const BITS: u16 = 258;
    pub(super) const COMPRESSION: u16 = 259;
    pub(super) const PHOTOMETRIC: u16 = 262;
    pub(super) const STRIP_OFFSETS: u16 = 273;
    pub(super) const ORIENTATION: u16 = 274;
    pub(super) const SAMPLES: u16 = 277;
    pub(super) const ROWS_PER_STRIP: u16 = 278;
    pub(super) const STRIP_BYTES: u16 = 279;
    pub(super) const PLANAR: u16 = 284;
    pub(super) const PREDICTOR: u16 = 317;
    pub(super) const TILE_WIDTH: u16 = 322;
    pub(super) const TILE_HEIGHT: u16 = 323;
    pub(super) const TILE_OFFSETS: u16 = 324;
    pub(super) const TILE_BYTES: u16 = 325;
    pub(super) const EXTRA_SAMPLES: u16 = 338;
    pub(super) const SAMPLE_FORMAT: u16 = 339;
    pub(super) const CHROMA_SUBSAMPLING: u16 = 530;
}

/// The geometry of a TIFF whose parts match its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Structure {
    pub(super) width: u32,
    pub(super) height: u32,
    /// 1, 8 or 16.
    pub(super) bits: u64,
    /// Each sample in a separate plane.
    pub(super) planar: bool,
    /// Number of strips or tiles.
    pub(super) parts: u64,
    /// Bytes of a row of a part.
    pub(super) row_bytes: u64,
    /// The raw value, if the tag has exactly one. The decoder would allocate memory for as many as the tag declares.
    pub(super) orientation: Option<u64>,
}

/// Reads the first directory of `bytes`, which begin with a TIFF header.
pub(super) fn read(bytes: &[u8], limits: &DecodeLimits) -> Result<Structure, DecodeError> {
    let directory = Directory::read(bytes)?;
    let one = |tag, default| directory.one(tag).map(|value| value.or(default));
    let required = |tag, name: &str| one(tag, None)?.ok_or_else(|| corrupt(format!("it has no {name}")));
    let side = |value: u64| u32::try_from(value).map_err(|_| corrupt("its size does not fit in 32 bits"));
    let (width, height) =
        (side(required(tag::WIDTH, "ImageWidth")?)?, side(required(tag::HEIGHT, "ImageLength")?)?);
    limits.check_size(ImageFormat::Tiff, width, height)?;

    check_compression(one(tag::COMPRESSION, Some(1))?.unwrap_or(1))?;
    check_photometric(required(tag::PHOTOMETRIC, "PhotometricInterpretation")?)?;
    let samples = one(tag::SAMPLES, Some(1))?.unwrap_or(1);
    if !(1..=8).contains(&samples) {
        return Err(unsupported(format!("{samples} samples per pixel; send grey, RGB or CMYK")));
    }
    let bits = directory.equal(tag::BITS, samples)?.unwrap_or(1);
    if !matches!(bits, 1 | 8 | 16) {
        return Err(unsupported(format!("{bits} bits per sample; send 8 or 16")));
    }
    if directory.equal(tag::SAMPLE_FORMAT, samples)?.unwrap_or(1) != 1 {
        return Err(unsupported("samples that are not unsigned integers"));
    }
    if directory.find(tag::EXTRA_SAMPLES).is_some_and(|entry| entry.count > samples) {
        return Err(corrupt("it has more extra samples than samples"));
    }
    // The decoder reads these as well, and allocates memory for as many values as they declare.
    one(tag::PREDICTOR, None)?;
    if directory.find(tag::CHROMA_SUBSAMPLING).is_some_and(|entry| entry.count != 2) {
        return Err(corrupt("it does not have two factors of chroma subsampling"));
    }
    let planar = one(tag::PLANAR, Some(1))?.unwrap_or(1) == 2 && samples > 1;

    let (sides_of_image, planes) = ((u64::from(width), u64::from(height)), if planar { samples } else { 1 });
    let tiled = directory.find(tag::TILE_WIDTH).is_some() || directory.find(tag::TILE_OFFSETS).is_some();
    let (across, down, part_width) = if tiled {
        if planar {
            return Err(unsupported("tiles with separate planes; send interleaved samples"));
        }
        let tile = (required(tag::TILE_WIDTH, "TileWidth")?, required(tag::TILE_HEIGHT, "TileLength")?);
        parts_of(sides_of_image, tile)?
    } else {
        let rows = one(tag::ROWS_PER_STRIP, None)?.unwrap_or(u64::MAX).min(sides_of_image.1);
        parts_of(sides_of_image, (sides_of_image.0, rows))?
    };
    let parts = across * down * planes;
    if parts > MAX_PARTS {
        return Err(unsupported(format!("{parts} strips or tiles; at most {MAX_PARTS} are accepted")));
    }
    let (offsets, counts) =
        if tiled { (tag::TILE_OFFSETS, tag::TILE_BYTES) } else { (tag::STRIP_OFFSETS, tag::STRIP_BYTES) };
    for tag in [offsets, counts] {
        let count = directory.find(tag).map_or(0, |entry| entry.count);
        if count != parts {
            return Err(corrupt(format!("its size requires {parts} strips or tiles, it lists {count}")));
        }
    }
    let data = directory.values(counts)?.try_fold(0u64, u64::checked_add);
    // Parts may share data, as those of one colour do in some files, but not without limit: each is read separately.
    if data.is_none_or(|data| data > 2 * bytes.len() as u64) {
        return Err(corrupt("its strips or tiles claim more data than there is"));
    }
    let row_bytes = (part_width * bits * if planar { 1 } else { samples }).div_ceil(8);
    // An invalid one is ignored.
    let orientation = one(tag::ORIENTATION, None).ok().flatten();
    Ok(Structure { width, height, bits, planar, parts, row_bytes, orientation })
}

/// Number of parts across and down an image, and their width.
fn parts_of(
    (width, height): (u64, u64),
    (part_width, part_height): (u64, u64),
) -> Result<(u64, u64, u64), DecodeError> {
    if part_width == 0 || part_height == 0 {
        return Err(corrupt("its strips or tiles have no pixels"));
    }
    let (across, down) = (width.div_ceil(part_width), height.div_ceil(part_height));
    let held = across.checked_mul(part_width).and_then(|columns| columns.checked_mul(height));
    if held.is_none_or(|held| held > 4 * width * height + PADDING) {
        return Err(unsupported("tiles that are far larger than the image"));
    }
    Ok((across, down, part_width))
}

fn check_compression(compression: u64) -> Result<(), DecodeError> {
    let name = match compression {
        1 | 5 | 8 | 32773 | 32946 => return Ok(()),
        2..=4 => "fax compression",
        6 | 7 => "JPEG compression",
        34925 => "LZMA compression",
        50000 => "Zstandard compression",
        50001 => "WebP compression",
        _ => "an unknown compression",
    };
    let number = compression;
    Err(unsupported(format!("{name} ({number}) within TIFF; send LZW, Deflate, PackBits or none")))
}

fn check_photometric(photometric: u64) -> Result<(), DecodeError> {
    let name = match photometric {
        0..=2 | 5 => return Ok(()),
        3 => "a palette",
        4 => "a transparency mask",
        6 => "YCbCr colours",
        8..=10 => "Lab colours",
        32803 | 34892 => "raw sensor data",
        _ => "an unknown colour space",
    };
    Err(unsupported(format!("{name} (PhotometricInterpretation {photometric}); send grey, RGB or CMYK")))
}

/// The first directory.
struct Directory<'a> {
    bytes: &'a [u8],
    entries: Vec<Entry>,
    big_endian: bool,
    big: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    kind: u16,
    count: u64,
    /// Position of the value, or of its offset.
    at: usize,
}

impl<'a> Directory<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let big_endian = bytes.first() == Some(&b'M');
        let big = bytes.get(2..4).is_some_and(|version| version.contains(&43));
        let mut directory = Self { bytes, entries: Vec::new(), big_endian, big };
        directory.read_entries().ok_or_else(|| corrupt("it ends before its directory does"))??;
        Ok(directory)
    }

    fn read_entries(&mut self) -> Option<Result<(), DecodeError>> {
        let start = usize::try_from(if self.big { self.number(8, 8)? } else { self.number(4, 4)? }).ok()?;
        let (count_size, entry_size) = if self.big { (8, 20) } else { (2, 12) };
        let count = self.number(start, count_size)?;
        if count > MAX_ENTRIES {
            let error = format!("{count} entries in its directory; at most {MAX_ENTRIES} are accepted");
            return Some(Err(unsupported(error)));
        }
        for index in 0..count as usize {
            let at = start.checked_add(count_size + index * entry_size)?;
            let count_size = if self.big { 8 } else { 4 };
            let entry = Entry {
                tag: self.number(at, 2)? as u16,
                kind: self.number(at + 2, 2)? as u16,
                count: self.number(at + 4, count_size)?,
                at: at + 4 + count_size,
            };
            if self.find(entry.tag).is_some() {
                return Some(Err(corrupt(format!("tag {} is repeated", entry.tag))));
            }
            self.entries.push(entry);
        }
        Some(Ok(()))
    }

    fn find(&self, tag: u16) -> Option<Entry> {
        self.entries.iter().find(|entry| entry.tag == tag).copied()
    }

    /// The value of a tag with exactly one value.
    fn one(&self, tag: u16) -> Result<Option<u64>, DecodeError> {
        match self.find(tag) {
            None => Ok(None),
            Some(Entry { count: 1, .. }) => Ok(self.values(tag)?.next()),
            Some(_) => Err(corrupt(format!("tag {tag} does not have one value"))),
        }
    }

    /// The common value of all samples.
    fn equal(&self, tag: u16, samples: u64) -> Result<Option<u64>, DecodeError> {
        if self.find(tag).is_some_and(|entry| entry.count > samples) {
            return Err(corrupt(format!("tag {tag} has more values than there are samples")));
        }
        let mut values = self.values(tag)?;
        let first = values.next();
        if values.any(|value| Some(value) != first) {
            return Err(unsupported("samples of different kinds"));
        }
        Ok(first)
    }

    /// The values of a tag; none if it is missing.
    fn values(&self, tag: u16) -> Result<impl Iterator<Item = u64>, DecodeError> {
        let (mut at, mut count, mut size) = (0, 0, 1);
        if let Some(entry) = self.find(tag) {
            size = match entry.kind {
                1 => 1,
                3 => 2,
                4 | 13 => 4,
                16 | 18 => 8,
                kind => return Err(corrupt(format!("tag {tag} has type {kind}"))),
            };
            let inline = if self.big { 8 } else { 4 };
            let whole = (|| {
                count = usize::try_from(entry.count).ok()?;
                let length = count.checked_mul(size)?;
                at = entry.at;
                if length > inline {
                    at = usize::try_from(self.number(entry.at, inline)?).ok()?;
                }
                self.bytes.get(at..at.checked_add(length)?).map(|_| ())
            })();
            whole.ok_or_else(|| corrupt(format!("the values of tag {tag} are beyond its end")))?;
        }
        Ok((0..count).map(move |index| self.number(at + index * size, size).unwrap_or_default()))
    }

    fn number(&self, at: usize, size: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(size)?)?;
        let shifted = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.big_endian {
            bytes.iter().fold(0, shifted)
        } else {
            bytes.iter().rev().fold(0, shifted)
        })
    }
}

fn corrupt(detail: impl Into<String>) -> DecodeError {
    DecodeError::corrupt(ImageFormat::Tiff, detail)
}

fn unsupported(detail: impl Into<String>) -> DecodeError {
    DecodeError::unsupported(ImageFormat::Tiff, detail)
}
