//! Every supported format and colour type, and its result.

use gpu_kernels::{DecodeLimits, ImageFormat, Orientation, inspect};
use image::{DynamicImage, Frame, GrayAlphaImage, GrayImage, ImageBuffer, RgbaImage};

use crate::draw::{code_of, decode, encode, picture, smooth};
use crate::write::{exif, idat, iend, ihdr, png, riff_chunks, tiff, tiff_entries, vp8x, webp};

const LOSSLESS: [(image::ImageFormat, ImageFormat); 5] = [
    (image::ImageFormat::Png, ImageFormat::Png),
    (image::ImageFormat::WebP, ImageFormat::WebP),
    (image::ImageFormat::Bmp, ImageFormat::Bmp),
    (image::ImageFormat::Tiff, ImageFormat::Tiff),
    (image::ImageFormat::Gif, ImageFormat::Gif),
];

#[test]
fn lossless_formats_come_back_bit_by_bit() {
    // Few colours, so that a GIF holds them too.
    let drawn = picture(37, 23, |x, y, channel| ((x / 8 + y / 8 + channel) % 4 * 85) as u8);
    for (encoder, format) in LOSSLESS {
        let bytes = drawn.encode(encoder);
        let header = inspect(&bytes, &DecodeLimits::default()).unwrap();
        assert_eq!((header.format, header.width, header.height), (format, 37, 23));
        assert_eq!(decode(&bytes).unwrap(), drawn, "{format}");
    }
}

#[test]
fn a_transparent_image_lies_on_white() {
    let rgba = RgbaImage::from_fn(5, 3, |x, y| image::Rgba([x as u8 * 40, y as u8 * 60, 9, x as u8 * 63]));
    let on_white = |level: u8, alpha: u8| {
        ((u32::from(level) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8
    };
    let expected: Vec<u8> = rgba
        .pixels()
        .flat_map(|&image::Rgba([r, g, b, a])| [r, g, b].map(|level| on_white(level, a)))
        .collect();
    let bmp = rgba32_bmp(&rgba);
    for (what, bytes) in [
        ("PNG", encode(&rgba.clone().into(), image::ImageFormat::Png)),
        ("WebP", encode(&rgba.clone().into(), image::ImageFormat::WebP)),
        ("TIFF", encode(&rgba.clone().into(), image::ImageFormat::Tiff)),
        ("BMP", bmp),
    ] {
        assert_eq!(decode(&bytes).unwrap().pixels, expected, "{what}");
    }
    let wide = ImageBuffer::from_fn(5, 3, |x, y| {
        image::Rgba(rgba.get_pixel(x, y).0.map(|level| u16::from(level) * 257))
    });
    for encoder in [image::ImageFormat::Png, image::ImageFormat::Tiff] {
        let bytes = encode(&DynamicImage::ImageRgba16(wide.clone()), encoder);
        assert_eq!(decode(&bytes).unwrap().pixels, expected, "16 bits, {encoder:?}");
    }
}

/// A bitmap of 32 bits whose header has a mask for alpha.
fn rgba32_bmp(rgba: &RgbaImage) -> Vec<u8> {
    encode(&rgba.clone().into(), image::ImageFormat::Bmp)
}

#[test]
fn a_bitmap_whose_alpha_is_nowhere_set_is_opaque() {
    let rgba = RgbaImage::from_fn(5, 3, |x, y| image::Rgba([x as u8 * 40, y as u8 * 60, 9, 0]));
    let expected: Vec<u8> = rgba.pixels().flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
    assert_eq!(decode(&rgba32_bmp(&rgba)).unwrap().pixels, expected);
}

#[test]
fn grey_and_sixteen_bits_become_8_bit_rgb() {
    let grey = GrayImage::from_fn(5, 3, |x, y| image::Luma([(x * 50 + y) as u8]));
    let triple: Vec<u8> = grey.pixels().flat_map(|pixel| [pixel[0]; 3]).collect();
    let grey_alpha = GrayAlphaImage::from_fn(5, 3, |x, y| image::LumaA([(x * 50 + y) as u8, 3]));
    let wide_grey = ImageBuffer::from_fn(5, 3, |x, y| image::Luma([(x * 50 + y) as u16 * 257 + 100]));
    let wide_rgb = ImageBuffer::from_fn(5, 3, |x, y| image::Rgb([(x * 50 + y) as u16 * 257 - x as u16; 3]));
    for encoder in [image::ImageFormat::Png, image::ImageFormat::Tiff] {
        assert_eq!(decode(&encode(&grey.clone().into(), encoder)).unwrap().pixels, triple);
        assert_eq!(
            decode(&encode(&DynamicImage::ImageLuma16(wide_grey.clone()), encoder)).unwrap().pixels,
            triple
        );
        assert_eq!(
            decode(&encode(&DynamicImage::ImageRgb16(wide_rgb.clone()), encoder)).unwrap().pixels,
            triple
        );
    }
    let light: Vec<u8> =
        triple.iter().map(|&level| 255 - ((255 - u32::from(level)) * 3 / 255) as u8).collect();
    let decoded = decode(&encode(&grey_alpha.into(), image::ImageFormat::Png)).unwrap().pixels;
    assert!(decoded.iter().zip(&light).all(|(a, b)| a.abs_diff(*b) <= 1), "{decoded:?}");
}

#[test]
fn a_palette_png_is_looked_up_and_lies_on_white() {
    let bytes = png(&[
        ihdr(4, 1, 2, 3),
        (b"PLTE", vec![10, 20, 30, 40, 50, 60, 70, 80, 90, 255, 0, 128]),
        (b"tRNS", vec![0, 255]),
        idat(&[&[0b00_01_10_11]]),
        iend(),
    ]);
    assert_eq!(decode(&bytes).unwrap().pixels, [255, 255, 255, 40, 50, 60, 70, 80, 90, 255, 0, 128]);
}

#[test]
fn one_bit_grey_is_black_and_white() {
    let bytes = png(&[ihdr(3, 1, 1, 0), idat(&[&[0b1010_0000]]), iend()]);
    assert_eq!(decode(&bytes).unwrap().pixels, [255, 255, 255, 0, 0, 0, 255, 255, 255]);
}

#[test]
fn the_first_frame_of_an_animated_gif_counts() {
    let frame = |level: u8| Frame::new(RgbaImage::from_pixel(6, 4, image::Rgba([level, level, level, 255])));
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    encoder.encode_frames([frame(200), frame(10)]).unwrap();
    drop(encoder);
    assert!(decode(&bytes).unwrap().pixels.iter().all(|&level| level == 200));
}

#[test]
fn a_gif_frame_smaller_than_its_canvas_lies_on_white() {
    let mut bytes = picture(6, 4, |_, _, _| 200).encode(image::ImageFormat::Gif);
    bytes[6..10].copy_from_slice(&[8, 0, 5, 0]);
    let decoded = decode(&bytes).unwrap();
    assert_eq!((decoded.width, decoded.height), (8, 5));
    let expected = picture(8, 5, |x, y, _| if x < 6 && y < 4 { 200 } else { 255 });
    assert_eq!(decoded, expected);
}

#[test]
fn a_gif_frame_larger_than_its_canvas_is_cut_or_refused() {
    let mut bytes = picture(6, 4, |_, _, _| 200).encode(image::ImageFormat::Gif);
    bytes[6..10].copy_from_slice(&[3, 0, 2, 0]);
    if let Ok(decoded) = decode(&bytes) {
        assert_eq!(decoded, picture(3, 2, |_, _, _| 200));
    }
}

#[test]
fn the_first_frame_of_an_animated_webp_counts() {
    let frame =
        |level: u8| {
            let file = smooth(16, 8);
            let file = picture(16, 8, |x, y, c| {
                if level == 0 { 7 } else { file.pixels[3 * (y * 16 + x) as usize + c as usize] }
            });
            let still = file.encode(image::ImageFormat::WebP);
            // x, y, width - 1, height - 1, duration (24 bits each) and flags, then the chunks of the still.
            let mut body = vec![0, 0, 0, 0, 0, 0, 15, 0, 0, 7, 0, 0, 100, 0, 0, 2];
            body.extend(&still[12..]);
            (b"ANMF", body)
        };
    let bytes = webp(&[vp8x(0x02, 16, 8), (b"ANIM", vec![0; 6]), frame(1), frame(0)]);
    assert_eq!(decode(&bytes).unwrap(), smooth(16, 8));
}

#[test]
fn the_default_image_of_an_animated_png_counts() {
    let mut control = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    control.extend([0; 8]);
    control.extend([0, 1, 0, 1, 0, 0]);
    let mut second = control.clone();
    second[3] = 1;
    let later: Vec<u8> = [vec![0, 0, 0, 2], idat(&[&[9]]).1].concat();
    let bytes = png(&[
        ihdr(1, 1, 8, 0),
        (b"acTL", vec![0, 0, 0, 2, 0, 0, 0, 0]),
        (b"fcTL", control),
        idat(&[&[200]]),
        (b"fcTL", second),
        (b"fdAT", later),
        iend(),
    ]);
    assert_eq!(decode(&bytes).unwrap().pixels, [200, 200, 200]);
}

#[test]
fn the_orientation_is_read_from_every_format_that_has_one() {
    let orientation = |bytes: &[u8]| {
        let header = inspect(bytes, &DecodeLimits::default()).unwrap();
        assert_eq!(decode(bytes).unwrap().orientation, header.orientation);
        header.orientation
    };
    let still = smooth(4, 2).encode(image::ImageFormat::WebP);
    for value in Orientation::ALL {
        let tag = value.exif();
        let bytes = png(&[ihdr(1, 1, 8, 0), (b"eXIf", exif(tag, true)), idat(&[&[9]]), iend()]);
        assert_eq!(orientation(&bytes), value);

        for prefix in [&b""[..], b"Exif\0\0"] {
            let block = [prefix, &exif(tag, false)].concat();
            let mut body = vec![vp8x(0x08, 4, 2), (b"EXIF", block)];
            let chunk =
                still[20..20 + u32::from_le_bytes(*still[16..].first_chunk().unwrap()) as usize].to_vec();
            body.insert(1, (b"VP8L", chunk));
            assert_eq!(orientation(&webp(&body)), value);
        }

        let mut entries = tiff_entries(2, 1, 8, 1, 2);
        entries.insert(6, (274, 3, 1, u32::from(tag)));
        assert_eq!(orientation(&tiff(&entries, &[1, 2])), value);
    }
}

#[test]
fn colour_types_that_are_not_read_are_refused_by_name() {
    // 32-bit float grey.
    let mut entries = tiff_entries(1, 1, 32, 1, 4);
    entries.push((339, 3, 1, 3));
    assert_eq!(code_of(decode(&tiff(&entries, &[0; 4]))), "unsupported_image");
    for (photometric, name) in [(3, "a palette"), (6, "YCbCr colours"), (8, "Lab colours")] {
        let error = decode(&tiff(&tiff_entries(1, 1, 8, photometric, 1), &[0])).unwrap_err();
        assert_eq!(error.code(), "unsupported_image");
        assert!(error.to_string().contains(name), "{error}");
    }
    let rgb32 = DynamicImage::ImageRgb32F(ImageBuffer::from_pixel(2, 2, image::Rgb([0.5f32; 3])));
    let error = decode(&encode(&rgb32, image::ImageFormat::Tiff)).unwrap_err();
    assert_eq!(error.to_string(), "unsupported tiff image: 32 bits per sample; send 8 or 16");
    // A compression that no decoder supports.
    let mut entries = tiff_entries(1, 1, 8, 1, 1);
    entries[3].3 = 34712;
    assert_eq!(code_of(decode(&tiff(&entries, &[0]))), "unsupported_image");
}

#[test]
fn a_webp_names_the_size_of_its_bitstream_too() {
    // riff_chunks is what the decoder's parser must accept.
    let inner = riff_chunks(&[(b"VP8L", vec![0x2F, 0xFF, 0xFF, 0xFF, 0x0F])]);
    let mut frame = vec![0; 16];
    frame.extend(inner);
    let bytes = webp(&[vp8x(0x02, 1, 1), (b"ANIM", vec![0; 6]), (b"ANMF", frame)]);
    assert_eq!(code_of(inspect(&bytes, &DecodeLimits::default())), "too_many_pixels");
}
