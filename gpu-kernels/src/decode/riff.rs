//! Walks the chunks of a WebP file: every size that it declares, and where its EXIF lies.
//!
//! A WebP names its size twice, on the canvas and in each bitstream, and the decoder allocates by the
//! latter before it compares them. So both are held against the limits.

/// The chunks of a WebP that decoding its first frame looks at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chunks<'a> {
    /// Width and height of the canvas, of the first frame and of its bitstream.
    pub(super) sizes: Vec<(u32, u32)>,
    /// The EXIF block, from its TIFF header on.
    pub(super) exif: Option<&'a [u8]>,
    /// It has frames, of which the first is laid on a canvas.
    pub(super) animated: bool,
    /// Lossless bitstreams, of an image or of its alpha; no more than one beyond [`MAX_LOSSLESS`].
    pub(super) lossless: Vec<Lossless<'a>>,
}

/// Lossless bitstreams that a sound file has at most, those of its first frame included.
pub(super) const MAX_LOSSLESS: usize = 4;

/// A lossless bitstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lossless<'a> {
    pub(super) bits: &'a [u8],
    pub(super) size: (u32, u32),
    /// It begins with its size; one of alpha does not.
    pub(super) has_header: bool,
}

/// Reads the chunks of `bytes`, which begin with a RIFF header. Stops where they no longer make sense.
pub(super) fn read(bytes: &[u8]) -> Chunks<'_> {
    let mut chunks = Chunks::default();
    let (mut canvas, mut frame_size, mut first_frame) = (None, None, None);
    for (name, body) in Walk(bytes.get(12..).unwrap_or_default()) {
        match name {
            b"VP8X" => {
                chunks.sizes.extend(size_of_24_bits(body, 4));
                canvas = canvas.or_else(|| size_of_24_bits(body, 4));
            }
            b"ANMF" if first_frame.is_none() => {
                chunks.animated = true;
                frame_size = size_of_24_bits(body, 6);
                chunks.sizes.extend(frame_size);
                first_frame = Some(body.get(16..).unwrap_or_default());
            }
            b"EXIF" if chunks.exif.is_none() => {
                chunks.exif = Some(body.strip_prefix(b"Exif\0\0").unwrap_or(body));
            }
            _ => {}
        }
    }
    // Alpha has the size of what it belongs to.
    for (part, size) in
        [(bytes.get(12..).unwrap_or_default(), canvas), (first_frame.unwrap_or_default(), frame_size)]
    {
        chunks.sizes.extend(Walk(part).find_map(|(name, body)| bitstream_size(name, body)));
        let lossless = Walk(part).filter_map(|(name, body)| lossless(name, body, size));
        chunks.lossless.extend(lossless.take(MAX_LOSSLESS + 1));
    }
    chunks
}

fn lossless<'a>(name: &[u8; 4], body: &'a [u8], alpha: Option<(u32, u32)>) -> Option<Lossless<'a>> {
    match (name, body) {
        (b"VP8L", bits) => Some(Lossless { bits, size: bitstream_size(name, bits)?, has_header: true }),
        // Two bits say how it is compressed.
        (b"ALPH", [flags, bits @ ..]) if flags & 3 == 1 => {
            Some(Lossless { bits, size: alpha?, has_header: false })
        }
        _ => None,
    }
}

/// Chunk after chunk: a name of four letters and a body. The last body may be cut short.
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
