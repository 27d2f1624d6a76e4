//! Parses the chunks of a WebP file: every declared size, the bitstreams to decode, and the position of its EXIF.
//!
//! A WebP declares its size twice, for the canvas and in each bitstream, and the decoder allocates by the latter before it
//! compares them. So both are checked against the limits here, and against each other.
//!
//! Chunks are selected as in `image-webp`: what is decoded must be what was checked.

/// Width and height.
type Size = (u32, u32);

/// Bytes of a VP8X chunk. The decoder reads this many, even if the chunk is shorter.
const EXTENDED: usize = 10;
const ANIMATION: u8 = 0x02;

/// The chunks of a WebP that are read to decode its first frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunks<'a> {
    /// Width and height of the canvas, of the first frame and of the bitstreams.
    pub(super) sizes: Vec<Size>,
    /// The EXIF block, from its TIFF header on.
    pub(super) exif: Option<&'a [u8]>,
    /// Whether it has frames, of which the first is drawn on a canvas.
    pub(super) animated: bool,
    /// The lossless bitstream to decode, of the image or of its alpha; there is at most one. An error describes why the file
    /// is corrupt.
    pub(super) lossless: Result<Option<Lossless<'a>>, &'static str>,
}

/// A lossless bitstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lossless<'a> {
    pub(super) bits: &'a [u8],
    pub(super) size: Size,
    /// Whether it begins with its size; one of alpha does not.
    pub(super) has_header: bool,
}

/// Parses the chunks of `bytes`, which begin with a RIFF header, up to the first invalid one.
pub(super) fn read(bytes: &[u8]) -> Chunks<'_> {
    let mut all = Walk(bytes.get(12..).unwrap_or_default());
    let (mut still, mut frame, mut exif) = (Picture::default(), None, None);
    for (name, body) in all.clone() {
        match name {
            b"ANMF" => frame = frame.or(Some(body)),
            b"EXIF" => exif = exif.or(Some(body.strip_prefix(b"Exif\0\0").unwrap_or(body))),
            _ => still.note(name, body),
        }
    }
    let first_chunk = all.next();
    let Some((b"VP8X", header)) = first_chunk else {
        // The first chunk is the whole image.
        let mut first = Picture::default();
        first_chunk.into_iter().for_each(|(name, body)| first.note(name, body));
        let sizes = first.sizes().collect();
        return Chunks { sizes, exif, animated: false, lossless: first.lossless(None) };
    };
    let animated = header.first().is_some_and(|flags| flags & ANIMATION != 0);
    let canvas = size_of_24_bits(header, 4);
    let frame_size = frame.and_then(|frame| size_of_24_bits(frame, 6));
    let in_frame = frame.and_then(|frame| Picture::of_frame(Walk(frame.get(16..)?)));
    let lossless = if header.len() < EXTENDED {
        Err("its VP8X chunk is too short")
    } else if animated {
        match &in_frame {
            Some(picture) => picture.lossless(frame_size),
            None => Err("its first frame has no picture"),
        }
    } else if frame.is_some() {
        // The decoder would take a frame's alpha for that of the canvas.
        Err("it has frames, and its header says that it is no animation")
    } else {
        still.lossless(canvas)
    };
    let pictures = [Some(still), in_frame].into_iter().flatten();
    let bitstreams: Vec<_> = pictures.flat_map(|picture| picture.sizes().collect::<Vec<_>>()).collect();
    let sizes = canvas.into_iter().chain(frame_size).chain(bitstreams).collect();
    Chunks { sizes, exif, animated, lossless }
}

/// The first bitstream of each kind.
#[derive(Clone, Copy, Default)]
struct Picture<'a> {
    /// VP8.
    lossy: Option<&'a [u8]>,
    /// VP8L.
    lossless: Option<&'a [u8]>,
    /// ALPH.
    alpha: Option<&'a [u8]>,
}

impl<'a> Picture<'a> {
    fn note(&mut self, name: &[u8; 4], body: &'a [u8]) {
        let place = match name {
            b"VP8 " => &mut self.lossy,
            b"VP8L" => &mut self.lossless,
            b"ALPH" => &mut self.alpha,
            _ => return,
        };
        *place = place.or(Some(body));
    }

    /// The bitstreams of a frame. The decoder goes by the first chunk, and takes what follows alpha for VP8 whatever its name
    /// is.
    fn of_frame(mut chunks: Walk<'a>) -> Option<Self> {
        let none = Self::default();
        match (chunks.next()?, chunks.next()) {
            ((b"VP8 ", bits), _) => Some(Self { lossy: Some(bits), ..none }),
            ((b"VP8L", bits), _) => Some(Self { lossless: Some(bits), ..none }),
            ((b"ALPH", alpha), Some((b"VP8 ", bits))) => {
                Some(Self { lossy: Some(bits), alpha: Some(alpha), ..none })
            }
            _ => None,
        }
    }

    /// The sizes in its bitstreams, as far as they are present.
    fn sizes(&self) -> impl Iterator<Item = Size> {
        let lossy = self.lossy.and_then(|bits| bitstream_size(b"VP8 ", bits));
        lossy.into_iter().chain(self.lossless.and_then(|bits| bitstream_size(b"VP8L", bits)))
    }

    /// The lossless bitstream to decode, if there is one. `size` is that of the canvas or frame; without one, only the
    /// bitstream declares it.
    fn lossless(&self, size: Option<Size>) -> Result<Option<Lossless<'a>>, &'static str> {
        if self.sizes().any(|own| size.is_some_and(|size| size != own)) {
            return Err("its bitstream has another size than its canvas or frame");
        }
        if let Some(bits) = self.lossless {
            let size = bitstream_size(b"VP8L", bits).ok_or("it ends before its last pixel")?;
            return Ok(Some(Lossless { bits, size, has_header: true }));
        }
        match self.alpha {
            // Two bits select the compression. Alpha has the size of its image.
            Some([flags, bits @ ..]) if flags & 3 == 1 => {
                let size = size.ok_or("the size of its alpha is not known")?;
                Ok(Some(Lossless { bits, size, has_header: false }))
            }
            _ => Ok(None),
        }
    }
}

/// Iterates over chunks: a name of four letters and a body. The last body may be truncated.
#[derive(Clone)]
struct Walk<'a>(&'a [u8]);

impl<'a> Iterator for Walk<'a> {
    type Item = (&'a [u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, after) = self.0.split_first_chunk::<4>()?;
        let (size, after) = after.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*size) as usize;
        // Bodies are padded to an even length.
        self.0 = after.get(size + size % 2..).unwrap_or_default();
        Some((name, &after[..size.min(after.len())]))
    }
}

fn bitstream_size(name: &[u8; 4], body: &[u8]) -> Option<(u32, u32)> {
    match name {
        // The upper two of 16 bits are a scaling hint for the viewer.
        b"VP8 " => {
            let &[w0, w1, h0, h1] = body.get(6..)?.first_chunk()?;
            let side = |bytes| u32::from(u16::from_le_bytes(bytes) & 0x3FFF);
            Some((side([w0, w1]), side([h0, h1])))
        }
        b"VP8L" => {
            let bits = u32::from_le_bytes(*body.get(1..)?.first_chunk()?);
            Some(((bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1))
        }
        _ => None,
    }
}

fn size_of_24_bits(body: &[u8], at: usize) -> Option<(u32, u32)> {
    let &[w0, w1, w2, h0, h1, h2] = body.get(at..)?.first_chunk()?;
    Some((u32::from_le_bytes([w0, w1, w2, 0]) + 1, u32::from_le_bytes([h0, h1, h2, 0]) + 1))
}
