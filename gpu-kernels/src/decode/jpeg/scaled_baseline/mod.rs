//! Decodes baseline JPEGs directly to a quarter or an eighth of their size.
//!
//! At these scales nearly all of libjpeg-turbo's time is spent on Huffman symbols whose coefficients are not used. Here they
//! are skipped several at a time through a table ([`tables`]), which about halves the time of a 4K frame
//! (docs/performance.md). The result is nearly the same: the contribution of each block's lowest frequencies to the means of
//! neighbouring pixels ([`idct`]; libjpeg adds that of the higher ones), chroma enlarged by using more of its own frequencies,
//! JFIF's colour conversion. docs/performance.md has the differences.
//!
//! Only plain JPEGs are supported: 8-bit baseline, one scan, YCbCr at 4:2:0 or 4:4:4. Everything else, and any irregularity in
//! the data, gives `None`, and libjpeg-turbo decodes or rejects the image.
//!
//! Source: ITU-T T.81, annexes A (scan order), F.2.2 (Huffman decoding) and K.

mod bits;
mod frame;
mod idct;
mod tables;
#[cfg(test)]
mod tests;
mod walk;

pub(super) use bits::{MAX_SCAN, SEGMENT_BYTES};
pub(in crate::decode) use walk::EntropyWalk;

use crate::decode::Until;
use bits::{Bits, EntropyData};
use frame::{Component, Frame};
use idct::Steps;
use tables::{Huffman, TableCache};

/// Decodes reduced images in buffers and tables that it reuses.
#[derive(Debug, Default)]
pub(super) struct ShrinkDecoder {
    tables: TableCache,
    data: EntropyData,
    /// One row of MCUs, one plane per component.
    strips: [Vec<u8>; 3],
}

/// The size of a component's block at the chosen scale, and the frequencies that it needs.
#[derive(Clone, Copy, Debug)]
struct BlockPlan {
    /// Pixels per side: 1, 2 or 4.
    side: usize,
    steps: Steps,
}

impl BlockPlan {
    fn of(side: usize, component: &Component) -> Option<Self> {
        Some(Self { side, steps: Steps::of(&component.quant, side)? })
    }
}

impl ShrinkDecoder {
    pub(super) fn retained_bytes(&self) -> usize {
        self.data.capacity() + self.strips.iter().map(Vec::capacity).sum::<usize>()
    }

    pub(super) fn trim(&mut self) {
        self.data.trim();
    }

    /// Decodes at `eighths`/8 of the size (1 or 2) into `rgb`, whose rows hold `width` pixels; `None` if the image is not
    /// plain, if it has any irregularity, or if the time limit is reached.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        eighths: usize,
        rgb: &mut [u8],
        width: usize,
        until: Until,
    ) -> Option<()> {
        let frame = Frame::read(bytes)?;
        let [luma, blue, red] = &frame.components;
        let chroma = eighths * frame.subsampling;
        let plans =
            [BlockPlan::of(eighths, luma)?, BlockPlan::of(chroma, blue)?, BlockPlan::of(chroma, red)?];
        self.data.collect(frame.scan, frame.segments())?;
        let tables = self.tables.build(&frame)?;

        let per_mcu = eighths * frame.subsampling;
        let stride = frame.mcus_per_row * per_mcu;
        for strip in &mut self.strips {
            strip.resize(stride * per_mcu, 0);
        }
        let mut predictions = [0; 3];
        let mut segments = self.data.segments();
        let mut bits = segments.next()?;
        let mut left = frame.restart_interval;
        for out in rgb.chunks_mut(width * 3 * per_mcu).take(frame.mcu_rows) {
            (!until.is_over()).then_some(())?;
            for mcu in 0..frame.mcus_per_row {
                if frame.restart_interval > 0 {
                    if left == 0 {
                        bits.is_used_up().then_some(())?;
                        bits = segments.next()?;
                        predictions = [0; 3];
                        left = frame.restart_interval;
                    }
                    left -= 1;
                }
                for (index, component) in frame.components.iter().enumerate() {
                    let (dc, ac) = (tables.dc(component), tables.ac(component));
                    let plan = &plans[index];
                    for block in 0..component.across * component.across {
                        let (row, column) = (block / component.across, block % component.across);
                        let at = row * plan.side * stride + mcu * per_mcu + column * plan.side;
                        let target = &mut self.strips[index][at..];
                        decode_block(&mut bits, (dc, ac), plan, &mut predictions[index], target, stride)?;
                    }
                }
            }
            bits.is_within().then_some(())?;
            colour(&self.strips, stride, out, width);
        }
        segments.next().is_none().then_some(())
    }
}

/// Decodes one block and writes its pixels; coefficients after the last one used are skipped.
#[inline(always)]
fn decode_block(
    bits: &mut Bits<'_>,
    (dc, ac): (&Huffman, &Huffman),
    plan: &BlockPlan,
    prediction: &mut i32,
    target: &mut [u8],
    stride: usize,
) -> Option<()> {
    bits.refill()?;
    let size = usize::from(dc.symbol(bits)?);
    (size <= 11).then_some(())?;
    *prediction = prediction.wrapping_add(bits.signed(size));
    let mut coefficients = [0i32; idct::PLACES];
    let last = plan.steps.last;
    plan.steps.add(&mut coefficients, 0, i32::from(*prediction as i16));
    let mut k = 1;
    while k <= last {
        bits.refill()?;
        let (run, value) = ac.coefficient(bits)?;
        if k + run > 63 {
            // Either the end of the block, or a run beyond it.
            (run == 64).then_some(())?;
            k = 64;
            break;
        }
        k += run;
        if k <= last {
            plan.steps.add(&mut coefficients, k, value);
        }
        k += 1;
    }
    ac.skip_rest(bits, k)?;
    match plan.side {
        1 => idct::one(&coefficients, target),
        2 => idct::two(&coefficients, target, stride),
        _ => idct::four(&coefficients, target, stride),
    }
    Some(())
}

/// JFIF's YCbCr to RGB, in 16-bit fixed point.
fn colour(strips: &[Vec<u8>; 3], stride: usize, out: &mut [u8], width: usize) {
    let [luma, blue, red] = strips;
    for (row, line) in out.chunks_exact_mut(width * 3).enumerate() {
        let from = row * stride..row * stride + width;
        let (luma, blue, red) = (&luma[from.clone()], &blue[from.clone()], &red[from]);
        for (pixel, ((&y, &cb), &cr)) in line.chunks_exact_mut(3).zip(luma.iter().zip(blue).zip(red)) {
            let (y, cb, cr) = ((i32::from(y) << 16) + 32768, i32::from(cb) - 128, i32::from(cr) - 128);
            pixel[0] = ((y + 91_881 * cr) >> 16).clamp(0, 255) as u8;
            pixel[1] = ((y - 22_554 * cb - 46_802 * cr) >> 16).clamp(0, 255) as u8;
            pixel[2] = ((y + 116_130 * cb) >> 16).clamp(0, 255) as u8;
        }
    }
}
