//! The definition of preprocessing, computed step by step in double precision: turn, resize, crop. Slow and plain.

use gpu_kernels::Orientation;

use crate::draw::Picture;

/// The pixel at (x, y) of the upright picture, by EXIF's definition of the eight orientations.
fn upright(picture: &Picture, x: u32, y: u32, channel: usize) -> f64 {
    let (w, h) = (picture.width, picture.height);
    let (column, row) = match picture.orientation {
        Orientation::Upright => (x, y),
        Orientation::FlipHorizontal => (w - 1 - x, y),
        Orientation::Rotate180 => (w - 1 - x, h - 1 - y),
        Orientation::FlipVertical => (x, h - 1 - y),
        Orientation::Transpose => (y, x),
        Orientation::Rotate90 => (y, h - 1 - x),
        Orientation::Transverse => (w - 1 - y, h - 1 - x),
        Orientation::Rotate270 => (w - 1 - y, x),
    };
    f64::from(picture.pixels[3 * (row as usize * w as usize + column as usize) + channel])
}

/// First source pixel and weights of each position of the window along an axis.
fn weights(size: u32, shorter: u32, resize: u32, crop: u32) -> Vec<(u32, Vec<f64>)> {
    let (wide, short) = (u64::from(size) * u64::from(resize), u64::from(shorter));
    let resized = (2 * wide + short) / (2 * short);
    let begin = (resized - u64::from(crop)) / 2;
    let factor = f64::from(size) / resized as f64;
    let support = factor.max(1.0);
    (begin..begin + u64::from(crop))
        .map(|position| {
            let centre = (position as f64 + 0.5) * factor;
            let first = (centre - support + 0.5).max(0.0) as u32;
            let end = ((centre + support + 0.5) as u32).min(size);
            let weigh = |at: u32| (1.0 - ((f64::from(at) + 0.5 - centre) / support).abs()).max(0.0);
            let raw: Vec<f64> = (first..end).map(weigh).collect();
            let sum: f64 = raw.iter().sum();
            (first, raw.into_iter().map(|weight| weight / sum).collect())
        })
        .collect()
}

/// Levels of the window, planes of red, green and blue, nothing rounded.
pub(crate) fn levels(picture: &Picture, resize: u32, crop: u32) -> Vec<f64> {
    let (mut width, mut height) = (picture.width, picture.height);
    if picture.orientation.swaps_sides() {
        (width, height) = (height, width);
    }
    let shorter = width.min(height);
    let (across, down) = (weights(width, shorter, resize, crop), weights(height, shorter, resize, crop));
    let first_row = down[0].0;
    let end_row = down.last().map(|(first, weights)| first + weights.len() as u32).unwrap();
    let mut out = Vec::with_capacity(3 * crop as usize * crop as usize);
    for channel in 0..3 {
        let mut rows = Vec::with_capacity((end_row - first_row) as usize * crop as usize);
        for y in first_row..end_row {
            rows.extend(across.iter().map(|(first, weights)| {
                let at = |(x, weight): (u32, &f64)| weight * upright(picture, x, y, channel);
                (*first..).zip(weights).map(at).sum::<f64>()
            }));
        }
        for (first, weights) in &down {
            for column in 0..crop as usize {
                let above = (*first - first_row) as usize;
                let at = |(y, weight): (usize, &f64)| weight * rows[y * crop as usize + column];
                out.push((above..).zip(weights).map(at).sum());
            }
        }
    }
    out
}
