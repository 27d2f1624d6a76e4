//! Converts decoded samples of other colour types to 8-bit RGB, in place.

use image::ColorType;

/// The background for transparent images: white, as in nearly every viewer and web page.
const BACKGROUND: u32 = 255;

/// Whether [`to_rgb`] can convert `color`.
pub(super) fn is_convertible(color: ColorType) -> bool {
    use ColorType::{L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16};
    matches!(color, L8 | La8 | L16 | La16 | Rgb8 | Rgba8 | Rgb16 | Rgba16)
}

/// Size of a buffer in which [`to_rgb`] can convert `count` pixels, in bytes.
pub(super) fn room(color: ColorType, count: usize) -> usize {
    usize::from(color.bytes_per_pixel()).max(3) * count
}

/// Converts `count` pixels of `color`, in native byte order, at the start of `buffer` to RGB in place.
pub(super) fn to_rgb(color: ColorType, buffer: &mut [u8], count: usize) {
    match color {
        ColorType::L8 => convert(buffer, count, |[grey]: [u8; 1]| [grey; 3]),
        ColorType::La8 => convert(buffer, count, |[grey, a]: [u8; 2]| [over(grey, a); 3]),
        ColorType::Rgba8 => convert(buffer, count, |[r, g, b, a]: [u8; 4]| [r, g, b].map(|c| over(c, a))),
        ColorType::L16 => convert(buffer, count, |[g0, g1]: [u8; 2]| [to_8_bit([g0, g1]); 3]),
        ColorType::La16 => convert(buffer, count, |[g0, g1, a0, a1]: [u8; 4]| {
            [over(to_8_bit([g0, g1]), to_8_bit([a0, a1])); 3]
        }),
        ColorType::Rgb16 => convert(buffer, count, |[r0, r1, g0, g1, b0, b1]: [u8; 6]| {
            [to_8_bit([r0, r1]), to_8_bit([g0, g1]), to_8_bit([b0, b1])]
        }),
        ColorType::Rgba16 => convert(buffer, count, |[r0, r1, g0, g1, b0, b1, a0, a1]: [u8; 8]| {
            let alpha = to_8_bit([a0, a1]);
            [[r0, r1], [g0, g1], [b0, b1]].map(|sample| over(to_8_bit(sample), alpha))
        }),
        _ => {}
    }
}

/// Converts `count` pixels of `N` bytes to three bytes each, in place: from the end where pixels grow, from the start where
/// they shrink, so that none is overwritten before it is read.
pub(super) fn convert<const N: usize>(buffer: &mut [u8], count: usize, pixel: impl Fn([u8; N]) -> [u8; 3]) {
    let mut one = |at: usize| {
        if let Some(&sample) = buffer.get(N * at..).and_then(<[u8]>::first_chunk::<N>)
            && let Some(out) = buffer.get_mut(3 * at..).and_then(<[u8]>::first_chunk_mut::<3>)
        {
            *out = pixel(sample);
        }
    };
    if N < 3 { (0..count).rev().for_each(&mut one) } else { (0..count).for_each(&mut one) }
}

/// Converts planes of `count` samples each (1 grey, 3 RGB, 4 with alpha; 8 or 16 bits in native byte order) to `rgb`.
pub(super) fn planes_to_rgb(planes: usize, wide: bool, samples: &[u8], rgb: &mut [u8]) {
    let count = rgb.len() / 3;
    let sample = |plane: usize, at: usize| match (wide, plane * count + at) {
        (false, at) => samples.get(at).copied().unwrap_or_default(),
        (true, at) => samples.get(2 * at..).and_then(<[u8]>::first_chunk).map_or(0, |&pair| to_8_bit(pair)),
    };
    for (at, out) in rgb.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let alpha = if planes == 4 { sample(3, at) } else { 255 };
        *out = [0, 1, 2].map(|plane| over(sample(if planes < 3 { 0 } else { plane }, at), alpha));
    }
}

/// Makes an RGBA image opaque if no pixel has any opacity: its writer did not use the fourth byte.
pub(super) fn without_void_alpha(rgba: &mut [u8]) {
    let pixels = rgba.as_chunks_mut::<4>().0;
    if pixels.iter().all(|pixel| pixel[3] == 0) {
        pixels.iter_mut().for_each(|pixel| pixel[3] = 255);
    }
}

/// 65535 / 255 is 257: the nearest of 256 levels.
fn to_8_bit(sample: [u8; 2]) -> u8 {
    ((u32::from(u16::from_ne_bytes(sample)) + 128) / 257) as u8
}

/// Blends `level` with opacity `alpha` with the background.
fn over(level: u8, alpha: u8) -> u8 {
    let (level, alpha) = (u32::from(level), u32::from(alpha));
    ((level * alpha + BACKGROUND * (255 - alpha) + 127) / 255) as u8
}

/// Converts CMYK of a JPEG, which by Adobe's convention stores inverted ink (0 is full ink): each channel is multiplied by
/// black. Every CMYK JPEG is taken for inverted, as in Pillow and Chrome.
pub(super) fn inverted_cmyk_to_rgb(buffer: &mut [u8], count: usize) {
    convert(buffer, count, |[c, m, y, k]: [u8; 4]| [c, m, y].map(|ink| multiply(ink, k)));
}

/// Converts CMYK of a TIFF, where 255 is full ink, of 8 or 16 bits.
pub(super) fn cmyk_to_rgb(wide: bool, buffer: &mut [u8], count: usize) {
    let rgb = |[c, m, y, k]: [u8; 4]| [c, m, y].map(|ink| multiply(255 - ink, 255 - k));
    if wide {
        convert(buffer, count, |[c0, c1, m0, m1, y0, y1, k0, k1]: [u8; 8]| {
            rgb([[c0, c1], [m0, m1], [y0, y1], [k0, k1]].map(to_8_bit))
        });
    } else {
        convert(buffer, count, rgb);
    }
}

/// `a * b / 255`, rounded.
fn multiply(a: u8, b: u8) -> u8 {
    ((u32::from(a) * u32::from(b) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_round_to_the_nearest_of_eight() {
        for level in 0..=255u16 {
            assert_eq!(u16::from(to_8_bit((level * 257).to_ne_bytes())), level);
        }
        assert_eq!(to_8_bit(128u16.to_ne_bytes()), 0);
        assert_eq!(to_8_bit(129u16.to_ne_bytes()), 1);
        assert_eq!(to_8_bit(u16::MAX.to_ne_bytes()), 255);
    }

    #[test]
    fn every_convertible_type_becomes_rgb_on_white_in_place() {
        let wide = |levels: &[u8]| -> Vec<u8> {
            levels.iter().flat_map(|&level| (u16::from(level) * 257).to_ne_bytes()).collect()
        };
        for (color, samples, expected) in [
            (ColorType::L8, vec![7, 9], [7, 7, 7, 9, 9, 9]),
            (ColorType::La8, vec![7, 0, 9, 255], [255, 255, 255, 9, 9, 9]),
            (ColorType::Rgb8, vec![1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
            (ColorType::Rgba8, vec![1, 2, 3, 0, 0, 255, 5, 51], [255, 255, 255, 204, 255, 205]),
            (ColorType::L16, wide(&[7, 8]), [7, 7, 7, 8, 8, 8]),
            (ColorType::La16, wide(&[7, 255, 8, 0]), [7, 7, 7, 255, 255, 255]),
            (ColorType::Rgb16, wide(&[1, 2, 3, 4, 5, 6]), [1, 2, 3, 4, 5, 6]),
            (ColorType::Rgba16, wide(&[1, 2, 3, 255, 4, 5, 6, 0]), [1, 2, 3, 255, 255, 255]),
        ] {
            assert!(is_convertible(color));
            let mut buffer = samples.clone();
            buffer.resize(room(color, 2), 0xAA);
            to_rgb(color, &mut buffer, 2);
            assert_eq!(buffer[..6], expected, "{color:?}");
        }
        assert!(!is_convertible(ColorType::Rgb32F));
    }

    #[test]
    fn planes_become_pixels() {
        let mut rgb = [0; 6];
        planes_to_rgb(3, false, &[1, 2, 3, 4, 5, 6], &mut rgb);
        assert_eq!(rgb, [1, 3, 5, 2, 4, 6]);
        planes_to_rgb(4, false, &[1, 2, 3, 4, 5, 6, 255, 0], &mut rgb);
        assert_eq!(rgb, [1, 3, 5, 255, 255, 255]);
    }

    #[test]
    fn alpha_that_is_nowhere_set_is_not_meant() {
        let mut void = [1, 2, 3, 0, 4, 5, 6, 0];
        without_void_alpha(&mut void);
        assert_eq!(void, [1, 2, 3, 255, 4, 5, 6, 255]);
        let mut meant = [1, 2, 3, 0, 4, 5, 6, 1];
        without_void_alpha(&mut meant);
        assert_eq!(meant, [1, 2, 3, 0, 4, 5, 6, 1]);
    }

    #[test]
    fn inverted_cmyk_of_no_ink_is_white_and_of_full_black_is_black() {
        let mut buffer = [255, 255, 255, 255, 255, 255, 255, 0, 0, 255, 128, 255];
        inverted_cmyk_to_rgb(&mut buffer, 3);
        assert_eq!(buffer[..9], [255, 255, 255, 0, 0, 0, 0, 255, 128]);
        let mut buffer = [0, 0, 0, 0, 255, 0, 127, 0];
        cmyk_to_rgb(false, &mut buffer, 2);
        assert_eq!(buffer[..6], [255, 255, 255, 0, 255, 128]);
    }
}
