//! PNGs.

use gpu_kernels::ImageFormat;

use super::{Bomb, Fate, MAX_BODY, SIDE, packed_flood, packed_zeros};
use crate::write::{iend, ihdr, png};

/// A chunk of frame control: number, size, place, time.
fn frame_control(number: u32, width: u32, height: u32) -> (&'static [u8; 4], Vec<u8>) {
    let mut body: Vec<u8> = [number, width, height, 0, 0].into_iter().flat_map(u32::to_be_bytes).collect();
    body.extend([0, 1, 0, 1, 0, 0]);
    (b"fcTL", body)
}

fn animation_control(frames: u32) -> (&'static [u8; 4], Vec<u8>) {
    (b"acTL", [frames.to_be_bytes(), [0; 4]].concat())
}

/// A grey picture of 64 x 64 with as many chunks before its data as fit.
fn stuffed(name: &'static [u8; 4], body: &[u8]) -> Vec<u8> {
    // The checksum is computed once, since all chunks are equal.
    let one = png(&[(name, body.to_vec())])[8..].to_vec();
    let frame = png(&[ihdr(64, 64, 8, 0), (b"IDAT", packed_zeros(64 * 65)), iend()]);
    let head = 8 + 25;
    let mut out = frame[..head].to_vec();
    while out.len() + one.len() + frame.len() < MAX_BODY {
        out.extend_from_slice(&one);
    }
    out.extend_from_slice(&frame[head..]);
    out
}

fn frames(count: u32) -> Vec<u8> {
    let data = packed_zeros(64 * 65);
    let mut chunks = vec![ihdr(64, 64, 8, 0), animation_control(count), frame_control(0, 64, 64)];
    chunks.push((b"IDAT", data.clone()));
    for frame in 1..count {
        chunks.push(frame_control(2 * frame - 1, 64, 64));
        chunks.push((b"fdAT", [&(2 * frame).to_be_bytes()[..], &data].concat()));
    }
    chunks.push(iend());
    png(&chunks)
}

pub(super) fn all() -> Vec<Bomb> {
    let rows = |bytes: u32| packed_zeros((SIDE * (bytes * SIDE + 1)) as usize);
    let profile = [b"icc\0\0".as_slice(), &packed_flood()].concat();
    let text = [b"t\0\0".as_slice(), &packed_flood()].concat();
    let small_frame = png(&[
        ihdr(64, 64, 8, 0),
        animation_control(1),
        frame_control(0, 8, 8),
        (b"IDAT", packed_zeros(64 * 65)),
        iend(),
    ]);
    let interlaced = |mut head: (&'static [u8; 4], Vec<u8>)| {
        head.1[12] = 1;
        head
    };
    let wide = png(&[ihdr(SIDE, SIDE, 16, 6), (b"IDAT", rows(8)), iend()]);
    let woven = png(&[interlaced(ihdr(SIDE, SIDE, 16, 6)), (b"IDAT", packed_zeros(9 << 22)), iend()]);
    super::of(
        ImageFormat::Png,
        vec![
            ("PNG, 16 bits, RGBA", Fate::Decoded, wide),
            ("PNG, 16 bits, RGBA, interlaced", Fate::Decoded, woven),
            (
                "PNG, 256 MiB behind its pixels",
                Fate::Decoded,
                png(&[ihdr(64, 64, 8, 0), (b"IDAT", packed_flood()), iend()]),
            ),
            (
                "PNG, a profile of 256 MiB",
                Fate::Decoded,
                png(&[ihdr(64, 64, 8, 0), (b"iCCP", profile), (b"IDAT", packed_zeros(64 * 65)), iend()]),
            ),
            (
                "PNG, a text of 256 MiB",
                Fate::Decoded,
                png(&[ihdr(64, 64, 8, 0), (b"zTXt", text), (b"IDAT", packed_zeros(64 * 65)), iend()]),
            ),
            ("PNG, a million texts", Fate::Decoded, stuffed(b"iTXt", b"t\0\0\0\0\0")),
            (
                "PNG, more EXIF than is read",
                Fate::Refused("unsupported_image"),
                png(&[ihdr(64, 64, 8, 0), (b"eXIf", vec![7; 19 << 20]), iend()]),
            ),
            ("PNG, 20,000 frames", Fate::Decoded, frames(20_000)),
            ("PNG, a first frame smaller than the image", Fate::Refused("corrupt_image"), small_frame),
        ],
    )
}
