//! The data passed between the decode and preprocess stages: pixels, their format and their orientation.

use std::fmt;

/// A format that [`Decoder`](crate::Decoder) reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// JPEG: baseline, progressive, arithmetic or 8-bit lossless.
    Jpeg,
    /// PNG; of an animated PNG the default image.
    Png,
    /// WebP, lossy or lossless; of an animation the first frame.
    WebP,
    /// Windows bitmap.
    Bmp,
    /// GIF; of an animation the first frame.
    Gif,
    /// TIFF; of several pages the first.
    Tiff,
}

impl ImageFormat {
    /// Every format, in the order of the documentation.
    pub const ALL: [Self; 6] = [Self::Jpeg, Self::Png, Self::WebP, Self::Bmp, Self::Gif, Self::Tiff];

    /// The lower-case name, as in metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Bmp => "bmp",
            Self::Gif => "gif",
            Self::Tiff => "tiff",
        }
    }

    /// The name for messages.
    pub fn title(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Gif => "GIF",
            Self::Tiff => "TIFF",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The transformation that turns the stored pixels upright (EXIF tag 0x0112).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Orientation {
    /// EXIF 1: none.
    #[default]
    Upright,
    /// EXIF 2: mirror left to right.
    FlipHorizontal,
    /// EXIF 3: rotate by 180 degrees.
    Rotate180,
    /// EXIF 4: mirror top to bottom.
    FlipVertical,
    /// EXIF 5: mirror along the diagonal from top left to bottom right.
    Transpose,
    /// EXIF 6: rotate by 90 degrees clockwise.
    Rotate90,
    /// EXIF 7: mirror along the diagonal from top right to bottom left.
    Transverse,
    /// EXIF 8: rotate by 270 degrees clockwise.
    Rotate270,
}

impl Orientation {
    /// Every orientation, in the order of the EXIF values 1 to 8.
    pub const ALL: [Self; 8] = [
        Self::Upright,
        Self::FlipHorizontal,
        Self::Rotate180,
        Self::FlipVertical,
        Self::Transpose,
        Self::Rotate90,
        Self::Transverse,
        Self::Rotate270,
    ];

    /// The orientation of an EXIF value, or `None` where the value is not 1 to 8.
    pub fn from_exif(value: u8) -> Option<Self> {
        Self::ALL.get(usize::from(value).checked_sub(1)?).copied()
    }

    /// The EXIF value, 1 to 8.
    pub fn exif(self) -> u8 {
        match self {
            Self::Upright => 1,
            Self::FlipHorizontal => 2,
            Self::Rotate180 => 3,
            Self::FlipVertical => 4,
            Self::Transpose => 5,
            Self::Rotate90 => 6,
            Self::Transverse => 7,
            Self::Rotate270 => 8,
        }
    }

    /// Whether width and height of the upright picture are those of the stored one swapped.
    pub fn swaps_sides(self) -> bool {
        matches!(self, Self::Transpose | Self::Rotate90 | Self::Transverse | Self::Rotate270)
    }

    /// Whether the upright picture reads the stored columns from right to left.
    pub fn flips_columns(self) -> bool {
        matches!(self, Self::FlipHorizontal | Self::Rotate180 | Self::Transverse | Self::Rotate270)
    }

    /// Whether the upright picture reads the stored rows from bottom to top.
    pub fn flips_rows(self) -> bool {
        matches!(self, Self::Rotate180 | Self::FlipVertical | Self::Rotate90 | Self::Transverse)
    }
}

/// A decoded image. It borrows the decoder's buffer until the next decode.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Format of the encoded bytes.
    pub format: ImageFormat,
    /// Width of `pixels`, before the orientation is applied.
    pub width: u32,
    /// Height of `pixels`, before the orientation is applied.
    pub height: u32,
    /// 8-bit RGB, interleaved, rows from the top without padding: `3 * width * height` bytes.
    pub pixels: &'a [u8],
    /// The transformation that turns `pixels` upright. They are in the order of the file.
    pub orientation: Orientation,
    /// Width in the file. Larger than `width` where a JPEG was decoded at a smaller scale.
    pub original_width: u32,
    /// Height in the file. Larger than `height` where a JPEG was decoded at a smaller scale.
    pub original_height: u32,
}
