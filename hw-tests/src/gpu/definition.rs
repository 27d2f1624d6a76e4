//! The definition of preprocessing (`gpu_kernels::preprocess`), computed step by step in double precision: rotate, resize, crop.
//! It shares no code with the implementations that are compared with it.

use gpu_kernels::Orientation;

/// Interleaved RGB as stored.
pub(super) struct Rgb<'a> {
    pub(super) pixels: &'a [u8],
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
}

/// First source pixel and weights of one position of the window along an axis.
type Weights = (usize, Vec<f64>);

impl Rgb<'_> {
    fn swaps_sides(&self) -> bool {
        use Orientation::{Rotate90, Rotate270, Transpose, Transverse};
        matches!(self.orientation, Transpose | Rotate90 | Transverse | Rotate270)
    }

    /// Index of the red of (x, y) of the upright picture, by EXIF's definition of the eight orientations.
    fn at(&self, x: usize, y: usize) -> usize {
        let (w, h) = (self.width as usize, self.height as usize);
        let (column, row) = match self.orientation {
            Orientation::Upright => (x, y),
            Orientation::FlipHorizontal => (w - 1 - x, y),
            Orientation::Rotate180 => (w - 1 - x, h - 1 - y),
            Orientation::FlipVertical => (x, h - 1 - y),
            Orientation::Transpose => (y, x),
            Orientation::Rotate90 => (y, h - 1 - x),
            Orientation::Transverse => (w - 1 - y, h - 1 - x),
            Orientation::Rotate270 => (w - 1 - y, x),
        };
        3 * (row * w + column)
    }

    /// Levels of the window, 0 to 255: planes of red, green and blue, nothing rounded.
    pub(super) fn levels(&self, resize: u32, crop: u32) -> Vec<f64> {
        let (mut width, mut height) = (self.width, self.height);
        if self.swaps_sides() {
            (width, height) = (height, width);
        }
        let shorter = width.min(height);
        let (across, down) = (weights(width, shorter, resize, crop), weights(height, shorter, resize, crop));
        let crop = crop as usize;
        let first_row = down.first().map_or(0, |(first, _)| *first);
        let end_row = down.last().map_or(0, |(first, weights)| first + weights.len());
        // Rows of the source, filtered horizontally: red, green and blue of each column.
        let mut rows = vec![[0.0f64; 3]; (end_row - first_row) * crop];
        for (y, row) in (first_row..end_row).zip(rows.chunks_exact_mut(crop)) {
            for (out, (first, weights)) in row.iter_mut().zip(&across) {
                for (x, weight) in (*first..).zip(weights) {
                    let at = self.at(x, y);
                    for (sum, level) in out.iter_mut().zip(&self.pixels[at..at + 3]) {
                        *sum += weight * f64::from(*level);
                    }
                }
            }
        }
        let mut out = vec![0.0; 3 * crop * crop];
        for (line, (first, weights)) in down.iter().enumerate() {
            for (y, weight) in (*first - first_row..).zip(weights) {
                for column in 0..crop {
                    for channel in 0..3 {
                        out[(channel * crop + line) * crop + column] +=
                            weight * rows[y * crop + column][channel];
                    }
                }
            }
        }
        out
    }
}

fn weights(size: u32, shorter: u32, resize: u32, crop: u32) -> Vec<Weights> {
    let (wide, short) = (u64::from(size) * u64::from(resize), u64::from(shorter));
    let resized = (2 * wide + short) / (2 * short);
    let begin = (resized - u64::from(crop)) / 2;
    let factor = f64::from(size) / resized as f64;
    let support = factor.max(1.0);
    (begin..begin + u64::from(crop))
        .map(|position| {
            let centre = (position as f64 + 0.5) * factor;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(size as usize);
            let weigh = |at: usize| (1.0 - ((at as f64 + 0.5 - centre) / support).abs()).max(0.0);
            let raw: Vec<f64> = (first..end).map(weigh).collect();
            let sum: f64 = raw.iter().sum();
            (first, raw.into_iter().map(|weight| weight / sum).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use gpu_kernels::{CpuPreprocessor, Image, ImageFormat, PreprocessSpec};

    use super::*;

    #[test]
    fn the_cpu_agrees_within_what_it_rounds() {
        let mut rng = fastrand::Rng::with_seed(7);
        for (width, height) in [(1, 1), (61, 40), (33, 200), (400, 301)] {
            for orientation in Orientation::ALL {
                let pixels: Vec<u8> = (0..3 * width * height).map(|_| rng.u8(..)).collect();
                let spec = PreprocessSpec { resize: 40, crop: 32, mean: [0.0; 3], std: [1.0; 3] };
                let mut cpu = vec![0.0; spec.output_len()];
                let format = ImageFormat::Png;
                let image = Image {
                    format,
                    width,
                    height,
                    pixels: &pixels,
                    orientation,
                    original_width: width,
                    original_height: height,
                };
                CpuPreprocessor::new(spec).unwrap().run(&image, &mut cpu).unwrap();
                let exact = Rgb { pixels: &pixels, width, height, orientation }.levels(40, 32);
                let far = exact.iter().zip(&cpu).map(|(e, c)| (e - f64::from(*c)).abs()).fold(0.0, f64::max);
                assert!(far <= 1.01, "{width} x {height}, {orientation:?}: {far}");
            }
        }
    }
}
