//! Planar pixels as a JPEG decoder leaves them: each chroma layout, and luma alone.

use gpu_kernels::preprocess::{Element, ImageDescriptor, PixelLayout};
use gpu_kernels::{Orientation, PreprocessSpec};

use super::host::Stored;
use super::{definition, distance, plain, run};
use crate::draw::{Picture, noise, picture};

/// A plane whose rows have `pitch` bytes, the last of them padding.
fn plane(width: u32, height: u32, pitch: u32, channel: u32) -> Vec<u8> {
    (0..height)
        .flat_map(|y| (0..pitch).map(move |x| if x < width { noise(x, y, channel) } else { 0xAA }))
        .collect()
}

/// ITU-T T.871, section 7.
fn to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (f64::from(y), f64::from(cb) - 128.0, f64::from(cr) - 128.0);
    let rgb = [y + 1.402 * cr, y - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587, y + 1.772 * cb];
    rgb.map(|level| level.round().clamp(0.0, 255.0) as u8)
}

fn check(width: u32, height: u32, shift: Option<(u32, u32)>, spec: &PreprocessSpec) {
    let (shift_x, shift_y) = shift.unwrap_or_default();
    let none = (0, 0);
    let layout = |[luma, blue, red]: [u32; 3]| match shift {
        Some(_) => PixelLayout::YCbCr { planes: [(0, luma), (0, blue), (0, red)], shift_x, shift_y },
        None => PixelLayout::Grey { plane: (0, luma) },
    };
    let pitches = match shift {
        Some(_) => PixelLayout::YCbCr { planes: [none; 3], shift_x, shift_y },
        None => PixelLayout::Grey { plane: none },
    }
    .least_pitches(width);
    let chroma = (width.div_ceil(1 << shift_x), height.div_ceil(1 << shift_y));
    let luma = plane(width, height, pitches[0], 0);
    let [blue, red] = match shift {
        Some(_) => [1, 2].map(|channel| plane(chroma.0, chroma.1, pitches[1], channel)),
        None => [Vec::new(), Vec::new()],
    };
    let expected = picture(width, height, |x, y, channel| {
        let at = |plane: &[u8], pitch: u32, x: u32, y: u32| plane[(y * pitch + x) as usize];
        let luma = at(&luma, pitches[0], x, y);
        let (cx, cy) = (x >> shift_x, y >> shift_y);
        match shift {
            Some(_) => {
                to_rgb(luma, at(&blue, pitches[1], cx, cy), at(&red, pitches[2], cx, cy))[channel as usize]
            }
            None => luma,
        }
    });
    let orientation = Orientation::Rotate90;
    let descriptor = ImageDescriptor::new(layout(pitches), (width, height), orientation, spec, 0);
    let got = run(spec, Element::F32, &[Stored { descriptor, planes: [luma, blue, red] }]);
    let expected = definition::levels(&Picture { orientation, ..expected }, spec.resize, spec.crop);
    let far = distance(&got, &expected);
    // A level that lies between two may be rounded to either.
    assert!(far <= 1.0, "{width} x {height}, chroma {shift:?}: {far} levels");
    let mean = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum::<f64>() / got.len() as f64;
    assert!(mean < 0.02, "{width} x {height}, chroma {shift:?}: {mean} levels on average");
}

#[test]
fn every_chroma_layout_is_the_definition_of_its_rgb() {
    let shifts = [Some((0, 0)), Some((1, 0)), Some((1, 1)), Some((0, 1)), Some((2, 0)), Some((2, 1)), None];
    for shift in shifts {
        for (width, height) in [(1, 1), (2, 3), (5, 7), (17, 16), (321, 240), (641, 479)] {
            check(width, height, shift, &plain(64, 48));
        }
    }
    check(1921, 1081, Some((1, 1)), &plain(256, 224));
}
