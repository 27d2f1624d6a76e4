//! Preprocessing on the CPU: `fast_image_resize` for the window, then a table lookup into the tensor.

use fast_image_resize::images::{Image as ResizeImage, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeError, ResizeOptions, Resizer};

use super::{PreprocessError, PreprocessSpec, ResizeCrop};
use crate::image::{Image, Orientation};

/// Preprocesses images in buffers that it reuses. Owned by one thread.
#[derive(Debug)]
pub struct CpuPreprocessor {
    spec: PreprocessSpec,
    /// The normalised value of each level, per channel.
    levels: Box<[[f32; 256]; 3]>,
    resizer: Resizer,
    /// The resized window in stored orientation: RGB, `crop` by `crop`.
    window: ResizeImage<'static>,
}

impl CpuPreprocessor {
    /// # Errors
    /// [`PreprocessError::InvalidSpec`].
    pub fn new(spec: PreprocessSpec) -> Result<Self, PreprocessError> {
        spec.validate()?;
        let mut levels = Box::new([[0.0; 256]; 3]);
        for (channel, table) in levels.iter_mut().enumerate() {
            for (level, value) in (0..=u8::MAX).zip(table.iter_mut()) {
                *value = spec.normalise(channel, level);
            }
        }
        let window = ResizeImage::new(spec.crop, spec.crop, PixelType::U8x3);
        Ok(Self { spec, levels, resizer: Resizer::new(), window })
    }

    /// The parameters.
    pub fn spec(&self) -> &PreprocessSpec {
        &self.spec
    }

    /// Writes the tensor of `image` to `out`: `3 * crop * crop` values, NCHW with N = 1, channels red,
    /// green, blue.
    ///
    /// # Errors
    /// [`PreprocessError::OutputLength`] and [`PreprocessError::BadImage`]; `out` is unchanged then.
    pub fn run(&mut self, image: &Image<'_>, out: &mut [f32]) -> Result<(), PreprocessError> {
        if out.len() != self.spec.output_len() {
            return Err(PreprocessError::OutputLength { got: out.len(), expected: self.spec.output_len() });
        }
        self.resize_window(image)?;
        self.write_upright(image.orientation, out);
        Ok(())
    }

    fn resize_window(&mut self, image: &Image<'_>) -> Result<(), PreprocessError> {
        let Image { width, height, pixels, orientation, .. } = *image;
        let bad_image = || PreprocessError::BadImage { width, height, bytes: pixels.len() };
        if width == 0 || height == 0 {
            return Err(bad_image());
        }
        let source = ImageRef::new(width, height, pixels, PixelType::U8x3).map_err(|_| bad_image())?;
        let placement = ResizeCrop::new(width, height, orientation, &self.spec);
        let (left, top, box_width, box_height) = placement.source_box(width, height, self.spec.crop);
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            .crop(left, top, box_width, box_height);
        let result: Result<(), ResizeError> = self.resizer.resize(&source, &mut self.window, &options);
        Ok(result?)
    }

    /// Normalises the window into planes, reading it in upright order.
    fn write_upright(&self, orientation: Orientation, out: &mut [f32]) {
        let crop = self.spec.crop as usize;
        let window = self.window.buffer().as_chunks::<3>().0;
        let (red, rest) = out.split_at_mut(crop * crop);
        let (green, blue) = rest.split_at_mut(crop * crop);
        let [reds, greens, blues] = &*self.levels;
        let mut put = |at: usize, [r, g, b]: [u8; 3]| {
            red[at] = reds[usize::from(r)];
            green[at] = greens[usize::from(g)];
            blue[at] = blues[usize::from(b)];
        };
        if orientation == Orientation::Upright {
            for (at, &pixel) in window.iter().enumerate() {
                put(at, pixel);
            }
            return;
        }
        let mirrored = |position: usize, flipped: bool| if flipped { crop - 1 - position } else { position };
        for row in 0..crop {
            for column in 0..crop {
                let (x, y) = if orientation.swaps_sides() { (row, column) } else { (column, row) };
                let x = mirrored(x, orientation.flips_columns());
                let y = mirrored(y, orientation.flips_rows());
                put(row * crop + column, window[y * crop + x]);
            }
        }
    }
}
