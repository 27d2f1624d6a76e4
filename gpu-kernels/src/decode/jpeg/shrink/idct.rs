//! Inverse DCTs of a block's lowest frequencies: an N x N block from the N x N lowest of 8 x 8 coefficients.
//!
//! A coefficient of the 8-point transform times N/8 is one of the N-point transform (both orthonormal), since the low
//! frequencies of a signal are those of the same signal sampled less often.

/// Bound on a dequantized coefficient, above what any 8-bit image has, so that no sum below overflows.
pub(super) const BOUND: i32 = 1 << 14;

/// The 4 x 4 lowest coefficients and one place for those that are not among them.
pub(super) const PLACES: usize = 17;

/// By zigzag index: where a coefficient stands in the 4 x 4 lowest, row by row; 16 for those outside.
pub(super) const PLACE: [u8; 25] =
    [0, 1, 4, 8, 5, 2, 3, 6, 9, 12, 16, 13, 10, 7, 16, 16, 16, 11, 14, 16, 16, 16, 16, 16, 15];

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

/// Binary digits behind the point of what a pass gives.
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
