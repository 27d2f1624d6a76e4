//! The position of the output window in the stored pixels of an image.

use super::PreprocessSpec;
use crate::image::Orientation;

/// The output window in the stored image, computed in upright coordinates and mapped back.
///
/// Resizing commutes with rotation, since the filter is symmetric; cropping does not: where the difference of the sizes is
/// odd, the window begins one pixel closer to the upright left or top, which after a flip is the stored right or bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeCrop {
    /// Width that the whole stored image would have after resizing.
    pub resized_width: u64,
    /// Height that the whole stored image would have after resizing.
    pub resized_height: u64,
    /// First column of the window in the resized stored image.
    pub left: u64,
    /// First row of the window in the resized stored image.
    pub top: u64,
}

impl ResizeCrop {
    /// For an image stored as `width` by `height`. Neither may be 0; `spec` must be valid.
    pub fn new(width: u32, height: u32, orientation: Orientation, spec: &PreprocessSpec) -> Self {
        let shorter = u64::from(width.min(height));
        // `resize` is at most 4096, so twice the product stays far below 2^64.
        let resized = |side: u32| (2 * u64::from(side) * u64::from(spec.resize) + shorter) / (2 * shorter);
        let (resized_width, resized_height) = (resized(width), resized(height));
        let begin = |size: u64, flipped: bool| {
            let upright = (size - u64::from(spec.crop)) / 2;
            if flipped { size - u64::from(spec.crop) - upright } else { upright }
        };
        Self {
            resized_width,
            resized_height,
            left: begin(resized_width, orientation.flips_columns()),
            top: begin(resized_height, orientation.flips_rows()),
        }
    }

    /// The window in stored pixels before resizing: left, top, width, height. The filter also reads beyond it, as far as its
    /// support reaches.
    pub fn source_box(&self, width: u32, height: u32, crop: u32) -> (f64, f64, f64, f64) {
        // Products first: where the window spans an axis, the result is exactly that side.
        let along =
            |position: u64, side: u32, resized: u64| position as f64 * f64::from(side) / resized as f64;
        (
            along(self.left, width, self.resized_width),
            along(self.top, height, self.resized_height),
            along(u64::from(crop), width, self.resized_width),
            along(u64::from(crop), height, self.resized_height),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(resize: u32, crop: u32) -> PreprocessSpec {
        PreprocessSpec { resize, crop, mean: [0.0; 3], std: [1.0; 3] }
    }

    #[test]
    fn the_longer_side_is_rounded_half_up() {
        let place = |w, h, resize| ResizeCrop::new(w, h, Orientation::Upright, &spec(resize, 1));
        assert_eq!(place(500, 375, 256).resized_width, 341); // 341.33
        assert_eq!(place(3, 2, 5).resized_width, 8); // 7.5
        assert_eq!(place(2, 3, 5).resized_height, 8);
        assert_eq!(place(640, 480, 256).resized_width, 341);
        assert_eq!(place(640, 480, 256).resized_height, 256);
    }

    #[test]
    fn an_odd_difference_is_floored_in_upright_coordinates() {
        // 341 - 224 = 117: the window begins at 58 upright, so at 59 where the axis is flipped.
        for orientation in Orientation::ALL {
            let placement = ResizeCrop::new(500, 375, orientation, &spec(256, 224));
            assert_eq!(placement.left, if orientation.flips_columns() { 59 } else { 58 }, "{orientation:?}");
            assert_eq!(placement.top, 16);
        }
    }

    #[test]
    fn a_strip_of_one_pixel_by_millions_does_not_overflow() {
        let placement = ResizeCrop::new(1, 50_000_000, Orientation::Rotate90, &spec(4096, 4096));
        assert_eq!(placement.resized_height, 204_800_000_000);
        let (left, top, width, height) = placement.source_box(1, 50_000_000, 4096);
        assert_eq!((left, width, height), (0.0, 1.0, 1.0));
        assert_eq!(top, 24_999_999.5);
    }

    #[test]
    fn a_window_that_spans_an_axis_is_exactly_that_side() {
        for side in 1..2000 {
            let placement = ResizeCrop::new(side, side * 2, Orientation::Upright, &spec(224, 224));
            let (left, _, width, _) = placement.source_box(side, side * 2, 224);
            assert_eq!((left, width), (0.0, f64::from(side)));
        }
    }
}
