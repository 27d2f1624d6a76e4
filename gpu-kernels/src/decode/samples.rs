//! Converts decoded samples of other colour types to 8-bit RGB.

use image::ColorType;

/// Whether [`to_rgb`] can convert `color`.
pub(super) fn is_convertible(color: ColorType) -> bool {
    use ColorType::{L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16};
    matches!(color, L8 | La8 | L16 | La16 | Rgb8 | Rgba8 | Rgb16 | Rgba16)
}

/// Converts whole pixels of `color`, in the machine's byte order, to `rgb`. Alpha is dropped.
pub(super) fn to_rgb(color: ColorType, samples: &[u8], rgb: &mut [u8]) {
    let out = rgb.as_chunks_mut().0;
    match color {
        ColorType::L8 => convert(samples, out, |&[grey]| [grey; 3]),
        ColorType::La8 => convert(samples, out, |&[grey, _]| [grey; 3]),
        ColorType::Rgba8 => convert(samples, out, |&[r, g, b, _]| [r, g, b]),
        ColorType::L16 => convert(samples, out, |&[g0, g1]| [to_8_bit([g0, g1]); 3]),
        ColorType::La16 => convert(samples, out, |&[g0, g1, _, _]| [to_8_bit([g0, g1]); 3]),
        ColorType::Rgb16 => convert(samples, out, |&[r0, r1, g0, g1, b0, b1]| {
            [to_8_bit([r0, r1]), to_8_bit([g0, g1]), to_8_bit([b0, b1])]
        }),
        ColorType::Rgba16 => convert(samples, out, |&[r0, r1, g0, g1, b0, b1, _, _]| {
            [to_8_bit([r0, r1]), to_8_bit([g0, g1]), to_8_bit([b0, b1])]
        }),
        _ => convert(samples, out, |pixel: &[u8; 3]| *pixel),
    }
}

fn convert<const N: usize>(samples: &[u8], rgb: &mut [[u8; 3]], pixel: impl Fn(&[u8; N]) -> [u8; 3]) {
    for (out, sample) in rgb.iter_mut().zip(samples.as_chunks().0) {
        *out = pixel(sample);
    }
}

/// 65535 / 255 is 257: the nearest of 256 levels.
fn to_8_bit(sample: [u8; 2]) -> u8 {
    ((u32::from(u16::from_ne_bytes(sample)) + 128) / 257) as u8
}

/// CMYK of a JPEG, which by Adobe's convention stores ink inverted (0 is full ink): each channel is
/// multiplied by black. Pillow and Chrome take every CMYK JPEG for inverted; so does this.
pub(super) fn inverted_cmyk_to_rgb(cmyk: &[u8], rgb: &mut [u8]) {
    convert(cmyk, rgb.as_chunks_mut().0, |&[c, m, y, k]| [c, m, y].map(|ink| multiply(ink, k)));
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
    fn every_convertible_type_keeps_colour_and_drops_alpha() {
        let wide = |levels: &[u8]| -> Vec<u8> {
            levels.iter().flat_map(|&level| (u16::from(level) * 257).to_ne_bytes()).collect()
        };
        for (color, samples, expected) in [
            (ColorType::L8, vec![7], [7, 7, 7]),
            (ColorType::La8, vec![7, 0], [7, 7, 7]),
            (ColorType::Rgb8, vec![1, 2, 3], [1, 2, 3]),
            (ColorType::Rgba8, vec![1, 2, 3, 0], [1, 2, 3]),
            (ColorType::L16, wide(&[7]), [7, 7, 7]),
            (ColorType::La16, wide(&[7, 0]), [7, 7, 7]),
            (ColorType::Rgb16, wide(&[1, 2, 3]), [1, 2, 3]),
            (ColorType::Rgba16, wide(&[1, 2, 3, 0]), [1, 2, 3]),
        ] {
            assert!(is_convertible(color));
            let mut rgb = [0xAA; 3];
            to_rgb(color, &samples, &mut rgb);
            assert_eq!(rgb, expected, "{color:?}");
        }
        assert!(!is_convertible(ColorType::Rgb32F));
    }

    #[test]
    fn inverted_cmyk_of_no_ink_is_white_and_of_full_black_is_black() {
        let mut rgb = [0xAA; 9];
        inverted_cmyk_to_rgb(&[255, 255, 255, 255, 255, 255, 255, 0, 0, 255, 128, 255], &mut rgb);
        assert_eq!(rgb, [255, 255, 255, 0, 0, 0, 0, 255, 128]);
    }
}
