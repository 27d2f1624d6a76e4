//! Inverse DCTs of a block's lowest frequencies: blocks of 1, 2 or 4 pixels per side from 8 x 8 coefficients.
//!
//! Each pixel of a reduced image should be the mean of the pixels that it stands for. libjpeg's reduced transforms compute it
//! exactly. The mean of 8/N neighbours of frequency k is again a frequency of the N-point transform, k itself or its alias at
//! the lower sampling rate, with a weight: for pairs cos(k pi/16), for fours cos(k pi/16) cos(k pi/8). So each coefficient
//! that is read is added, weighted, to the one that it contributes to ([`Steps`]). The error is the contribution of the unread
//! coefficients; the higher ones are rarer, smaller, and have less weight.

/// Bound on a dequantized coefficient, beyond that of any 8-bit image, so that no sum below overflows.
const BOUND: i32 = 1 << 14;

/// The 4 x 4 coefficients, row by row.
pub(super) const PLACES: usize = 16;

/// Fractional bits of a weighted quantization step.
const STEP_POINT: i32 = 7;

/// The last coefficient that is read for blocks of two pixels per side. Reading up to 6 would take 5 % more time for a 1080p
/// frame, and bring its pixels little closer to the means (docs/performance.md).
const LAST_OF_TWO: usize = 4;
/// Maximum number of coefficients that are read.
const MAX_COEFFICIENTS: usize = 25;

/// By zigzag index: row and column of a coefficient.
#[rustfmt::skip]
const ZIGZAG: [(u8, u8); MAX_COEFFICIENTS] = [
    (0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0), (4, 0), (3, 1), (2, 2), (1, 3), (0, 4), (0, 5),
    (1, 4), (2, 3), (3, 2), (4, 1), (5, 0), (6, 0), (5, 1), (4, 2), (3, 3),
];

/// How each coefficient that is read contributes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    /// Zigzag index of the last coefficient that is read.
    pub(super) last: usize,
    /// By zigzag index. The length is that of the index mask, which avoids bounds checks.
    steps: [Step; 32],
}

/// How one coefficient contributes. One without a contribution has weight 0 and adds nothing to place 0.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    /// Index of the coefficient of the reduced transform that it is added to.
    place: u32,
    /// Its quantization step times its weight; at most 15 bits.
    weighted: i32,
}

impl Steps {
    /// For blocks of 1, 2 or 4 pixels per side.
    pub(super) fn of(quant: &[i32; 64], side: usize) -> Option<Self> {
        let last = match side {
            1 => 0,
            2 => LAST_OF_TWO,
            4 => MAX_COEFFICIENTS - 1,
            _ => return None,
        };
        let mut steps = [Step::default(); 32];
        for (index, &(row, column)) in ZIGZAG.iter().enumerate().take(last + 1) {
            if let (Some((y, down)), Some((x, across))) = (share(row, side), share(column, side)) {
                let weighted = quant[index] as f32 * down * across * (1 << STEP_POINT) as f32;
                steps[index] = Step { place: u32::from(4 * y + x), weighted: weighted.round() as i32 };
            }
        }
        Some(Self { last, steps })
    }

    /// Adds a value of at most 16 bits, the coefficient of zigzag index `k`, where it contributes.
    #[inline(always)]
    pub(super) fn add(&self, coefficients: &mut [i32; PLACES], k: usize, value: i32) {
        let Step { place, weighted } = self.steps[k % 32];
        let sum = &mut coefficients[place as usize % PLACES];
        let dequantized = (value * weighted + (1 << (STEP_POINT - 1))) >> STEP_POINT;
        *sum = (*sum + dequantized).clamp(-BOUND, BOUND);
    }
}

/// The frequency of the reduced transform to which one of the 8-point transform contributes, and its weight.
fn share(frequency: u8, side: usize) -> Option<(u8, f32)> {
    match (side, frequency) {
        (_, 0) => Some((0, 1.0)),
        (2, 1) => Some((1, 0.906_127_4)),
        (2, 3) => Some((1, -0.318_189_6)),
        (4, 1) => Some((1, 0.980_785_3)),
        (4, 2) => Some((2, 0.923_879_5)),
        (4, 3) => Some((3, 0.831_469_6)),
        (4, 5) => Some((3, -0.555_570_2)),
        (4, 6) => Some((2, -0.382_683_4)),
        _ => None,
    }
}

/// One pixel: the mean.
pub(super) fn one(coefficients: &[i32; PLACES], target: &mut [u8]) {
    target[0] = level((coefficients[0] + 4) >> 3);
}

/// Two by two.
pub(super) fn two(coefficients: &[i32; PLACES], target: &mut [u8], stride: usize) {
    let [mean, across, down, both] = [coefficients[0] + 4, coefficients[1], coefficients[4], coefficients[5]];
    let (top, bottom) = (mean + down, mean - down);
    let (left, right) = (across + both, across - both);
    target[0] = level((top + left) >> 3);
    target[1] = level((top - left) >> 3);
    target[stride] = level((bottom + right) >> 3);
    target[stride + 1] = level((bottom - right) >> 3);
}

/// Four by four.
pub(super) fn four(coefficients: &[i32; PLACES], target: &mut [u8], stride: usize) {
    let mut columns = [0i32; 16];
    for x in 0..4 {
        let at = |y: usize| coefficients[4 * y + x];
        for (y, value) in four_points([at(0), at(1), at(2), at(3)]).into_iter().enumerate() {
            columns[4 * y + x] = (value + (1 << (POINT - 1))) >> POINT;
        }
    }
    for y in 0..4 {
        let row = [columns[4 * y], columns[4 * y + 1], columns[4 * y + 2], columns[4 * y + 3]];
        for (pixel, value) in target[y * stride..y * stride + 4].iter_mut().zip(four_points(row)) {
            // Three more bits: a half for N/8, and a quarter for the two passes, each of which doubles.
            *pixel = level((value + (1 << (POINT + 2))) >> (POINT + 3));
        }
    }
}

/// Fractional bits of a pass's output.
const POINT: i32 = 12;

/// The 4-point inverse DCT, twice the orthonormal one.
fn four_points([f0, f1, f2, f3]: [i32; 4]) -> [i32; 4] {
    // sqrt(2) cos(pi/8) and sqrt(2) sin(pi/8).
    const C: i32 = 5352;
    const S: i32 = 2217;
    let (even, odd) = (((f0 + f2) << POINT, (f0 - f2) << POINT), (C * f1 + S * f3, S * f1 - C * f3));
    [even.0 + odd.0, even.1 + odd.1, even.1 - odd.1, even.0 - odd.0]
}

fn level(value: i32) -> u8 {
    (value + 128).clamp(0, 255) as u8
}
