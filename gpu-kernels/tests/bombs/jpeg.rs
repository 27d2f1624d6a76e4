//! JPEGs.

use gpu_kernels::ImageFormat;

use super::{Bomb, Fate, MAX_BODY, SIDE};

/// A bit writer (most significant bit first) with byte stuffing after 255.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    byte: u8,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        for bit in (0..count).rev() {
            self.byte = self.byte << 1 | (value >> bit & 1) as u8;
            self.count += 1;
            if self.count == 8 {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        self.bytes.push(self.byte);
        if self.byte == 0xFF {
            self.bytes.push(0);
        }
        (self.byte, self.count) = (0, 0);
    }

    fn finish(mut self) -> Vec<u8> {
        while self.count > 0 {
            self.put(1, 1);
        }
        self.bytes
    }
}

fn segment(out: &mut Vec<u8>, code: u8, body: &[u8]) {
    out.extend([0xFF, code]);
    out.extend((body.len() as u16 + 2).to_be_bytes());
    out.extend_from_slice(body);
}

/// Up to the first scan: a DC code of one bit for 0 only, and an AC code of four bits for ends of blocks.
fn headers(frame: u8, side: u16, components: u8) -> Vec<u8> {
    let mut out = vec![0xFF, 0xD8];
    segment(&mut out, 0xDB, &[&[0u8][..], &[1; 64]].concat());
    let mut body = vec![8];
    body.extend([side.to_be_bytes(), side.to_be_bytes()].concat());
    body.push(components);
    body.extend((1..=components).flat_map(|id| [id, 0x11, 0]));
    segment(&mut out, frame, &body);
    let mut dc = vec![0x00, 1];
    dc.extend([0; 16]);
    segment(&mut out, 0xC4, &dc);
    let mut ac = vec![0x10, 0, 0, 0, 15];
    ac.extend([0; 12]);
    ac.extend((0..15u8).map(|run| run << 4));
    segment(&mut out, 0xC4, &ac);
    out
}

fn blocks(side: u16) -> u32 {
    u32::from(side.div_ceil(8)).pow(2)
}

/// A progressive JPEG with all coefficients 0, in one DC scan and this many AC scans, each over all coefficients.
pub(super) fn progressive(side: u16, components: u8, scans: usize) -> Vec<u8> {
    let mut out = headers(0xC2, side, components);
    let mut selectors = vec![components];
    selectors.extend((1..=components).flat_map(|id| [id, 0]));
    segment(&mut out, 0xDA, &[&selectors[..], &[0, 0, 0]].concat());
    let mut bits = Bits::default();
    (0..blocks(side) * u32::from(components)).for_each(|_| bits.put(0, 1));
    out.extend(bits.finish());
    let ends = ends_of_blocks(blocks(side));
    // From bit 13 down; scans after bit 0 refine it again.
    let mut done = vec![None; usize::from(components)];
    for scan in 0..scans.saturating_sub(1) {
        let id = scan % usize::from(components);
        let (high, low) = match done[id] {
            None => (0, 13),
            Some(0) => (1, 0),
            Some(before) => (before, before - 1),
        };
        done[id] = Some(low);
        segment(&mut out, 0xDA, &[1, id as u8 + 1, 0, 1, 63, high << 4 | low]);
        out.extend_from_slice(&ends);
    }
    out.extend([0xFF, 0xD9]);
    out
}

/// A scan of blocks without coefficients, in runs of the maximum length.
fn ends_of_blocks(mut blocks: u32) -> Vec<u8> {
    let mut bits = Bits::default();
    while blocks > 0 {
        let run = blocks.min(32_767);
        let size = run.ilog2();
        bits.put(size, 4);
        bits.put(run - (1 << size), size);
        blocks -= run;
    }
    bits.finish()
}

/// A black baseline JPEG, whose blocks take five bits each.
fn baseline(side: u16, components: u8) -> Vec<u8> {
    let mut out = headers(0xC0, side, components);
    let mut selectors = vec![components];
    selectors.extend((1..=components).flat_map(|id| [id, 0]));
    segment(&mut out, 0xDA, &[&selectors[..], &[0, 63, 0]].concat());
    let mut bits = Bits::default();
    (0..blocks(side) * u32::from(components)).for_each(|_| bits.put(0, 5));
    out.extend(bits.finish());
    out.extend([0xFF, 0xD9]);
    out
}

/// `jpeg` with as many segments of a kind after its SOI as fit.
fn stuffed(jpeg: &[u8], code: u8, body: &[u8]) -> Vec<u8> {
    let mut out = jpeg[..2].to_vec();
    while out.len() + body.len() + 4 + jpeg.len() < MAX_BODY {
        segment(&mut out, code, body);
    }
    out.extend_from_slice(&jpeg[2..]);
    out
}

fn restart_markers(interval: u16) -> Vec<u8> {
    let mut out = headers(0xC0, SIDE as u16, 3);
    segment(&mut out, 0xDD, &interval.to_be_bytes());
    segment(&mut out, 0xDA, &[3, 1, 0, 2, 0, 3, 0, 0, 63, 0]);
    out.extend((0..(MAX_BODY - out.len()) / 2).flat_map(|at| [0xFF, 0xD0 + (at % 8) as u8]));
    out
}

pub(super) fn all() -> Vec<Bomb> {
    let side = SIDE as u16;
    let small = baseline(64, 3);
    let exif = [b"Exif\0\0II*\0\x08\0\0\0".as_slice(), &5000u16.to_le_bytes(), &[7; 60_000]].concat();
    let profile = [b"ICC_PROFILE\0\x01\xFF".as_slice(), &[7; 65_000]].concat();
    super::of(
        ImageFormat::Jpeg,
        vec![
            ("JPEG, baseline", Fate::Decoded, baseline(side, 3)),
            ("JPEG, progressive, 100 scans", Fate::Decoded, progressive(side, 3, 100)),
            ("JPEG, progressive, CMYK", Fate::Decoded, progressive(side, 4, 40)),
            ("JPEG, 101 scans", Fate::Refused("too_many_scans"), progressive(side, 3, 101)),
            ("JPEG, 49 megapixels, 21 scans", Fate::Refused("too_many_scans"), progressive(7000, 3, 21)),
            ("JPEG, 20 MiB of restart markers", Fate::Fails("corrupt_image"), restart_markers(0)),
            ("JPEG, 20 MiB of restart markers, interval 1", Fate::Fails("corrupt_image"), restart_markers(1)),
            ("JPEG, 20 MiB of EXIF", Fate::Decoded, stuffed(&small, 0xE1, &exif)),
            ("JPEG, 20 MiB of profiles", Fate::Decoded, stuffed(&small, 0xE2, &profile)),
            (
                "JPEG, 20 MiB of quantization tables",
                Fate::Decoded,
                stuffed(&small, 0xDB, &[&[1u8][..], &[1; 64]].concat()),
            ),
        ],
    )
}
