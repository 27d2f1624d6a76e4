//! Where the first frame of a GIF lies, and what stands before it.

/// The first frame of a GIF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstFrame {
    /// Bytes of extensions (comments, profiles) before it, which the decoder may keep.
    pub(super) extensions: usize,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// `None` where the file ends before its first frame, or has none.
pub(super) fn first_frame(bytes: &[u8]) -> Option<FirstFrame> {
    let head = 13 + palette_bytes(*bytes.get(10)?);
    let mut at = head;
    loop {
        match *bytes.get(at..)?.first()? {
            0x21 => {
                at = after_blocks(bytes, at + 2)?;
            }
            0x2C => {
                let &[w0, w1, h0, h1] = bytes.get(at + 5..)?.first_chunk()?;
                return Some(FirstFrame {
                    extensions: at - head,
                    width: u32::from(u16::from_le_bytes([w0, w1])),
                    height: u32::from(u16::from_le_bytes([h0, h1])),
                });
            }
            _ => return None,
        }
    }
}

fn palette_bytes(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

/// Behind a chain of data blocks, each with its length in front, and the empty one that ends it.
fn after_blocks(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    }
}
