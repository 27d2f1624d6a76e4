//! Regenerates the seeds of the fuzz targets: `cargo run -p weir-fuzz --example seeds`. All pictures are drawn here or are in
//! `gpu-kernels/tests/field`. Seeds found by the fuzzer (`found-*`) are not changed.
#![allow(dead_code, unreachable_pub, reason = "the helpers of the pixel tests are taken in whole")]
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a tool for developers")]

#[path = "../../gpu-kernels/tests/pixels/draw.rs"]
mod draw;
#[path = "../../gpu-kernels/tests/pixels/write.rs"]
mod write;

use cloud_sync::outbox::{Outbox, OutboxConfig};
use draw::{Jpeg, Picture, encode, grainy, smooth};
use image::{DynamicImage, ImageFormat};
use turbojpeg::{PixelFormat, Subsamp};
use write::{exif, idat, iend, ihdr, png, tiff, tiff_entries, vp8x, webp, with_exif, with_segment};

fn seed(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    let folder = weir_fuzz::seeds(target);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn main() {
    jpegs();
    pngs();
    tiffs();
    others();
    requests();
    messages();
    manifests();
    outboxes();
}

fn drawn() -> Picture {
    grainy(72, 56)
}

fn with_alpha() -> DynamicImage {
    let picture = drawn().as_rgb();
    DynamicImage::ImageRgba8(image::RgbaImage::from_fn(72, 56, |x, y| {
        let [r, g, b] = picture.get_pixel(x, y).0;
        image::Rgba([r, g, b, (x * 3) as u8])
    }))
}

fn jpegs() {
    let plain = Jpeg::default();
    let exact = Jpeg { quality: 100, ..plain };
    for (name, bytes) in [
        ("420.jpg", plain.encode(&drawn())),
        ("444.jpg", Jpeg { subsampling: Subsamp::None, ..plain }.encode(&drawn())),
        ("422.jpg", Jpeg { subsampling: Subsamp::Sub2x1, ..plain }.encode(&drawn())),
        ("grey.jpg", Jpeg { subsampling: Subsamp::Gray, ..plain }.encode(&drawn())),
        ("q100-420.jpg", exact.encode(&smooth(96, 80))),
        ("q100-444.jpg", Jpeg { subsampling: Subsamp::None, ..exact }.encode(&smooth(64, 64))),
        ("progressive.jpg", Jpeg { progressive: true, ..plain }.encode(&drawn())),
        ("one-pixel.jpg", plain.encode(&smooth(1, 1))),
    ] {
        seed("decode_jpeg", name, &bytes);
        seed("jpeg_scales", name, &bytes);
    }
    let grey: Vec<u8> = drawn().pixels.chunks(3).flat_map(|p| [p[0], p[1], p[2], 9]).collect();
    let restarts = with_segment(&plain.encode(&smooth(40, 30)), 0xDD, &[0, 1]);
    for (name, bytes) in [
        ("arithmetic.jpg", Jpeg { arithmetic: true, ..plain }.encode(&drawn())),
        (
            "arithmetic-progressive.jpg",
            Jpeg { arithmetic: true, progressive: true, ..plain }.encode(&drawn()),
        ),
        ("lossless.jpg", Jpeg { lossless: true, ..plain }.encode(&grainy(24, 16))),
        ("cmyk.jpg", plain.encode_as(72, 56, &grey, PixelFormat::CMYK)),
        ("exif.jpg", with_exif(&plain.encode(&smooth(40, 30)), &exif(6, false))),
        ("restart-interval.jpg", restarts),
        ("no-tables.jpg", without_tables(&plain.encode(&smooth(40, 30)))),
        ("own-tables.jpg", own_tables()),
    ] {
        seed("decode_jpeg", name, bytes);
    }
    // Width, height, sampling and tables, quality, cells of a grid; its levels.
    for (name, head) in [
        ("drawn-420", [1, 40, 30, 0, 60, 2]),
        ("drawn-444", [1, 31, 77, 1, 20, 3]),
        ("drawn-progressive", [1, 90, 33, 12, 50, 1]),
        ("drawn-grey", [1, 8, 90, 7, 10, 4]),
    ] {
        seed("jpeg_scales", name, [&head[..], &[20, 200, 90, 40, 220, 128, 60, 70, 250, 110, 30]].concat());
    }
}

/// A JPEG without its Huffman tables, which are the standard ones.
fn without_tables(jpeg: &[u8]) -> Vec<u8> {
    let mut out = jpeg.to_vec();
    while let Some(at) = out.windows(2).position(|pair| pair == [0xFF, 0xC4]) {
        let length = usize::from(u16::from_be_bytes([out[at + 2], out[at + 3]]));
        out.drain(at..at + 2 + length);
    }
    out
}

/// A JPEG with optimised Huffman tables.
fn own_tables() -> Vec<u8> {
    let picture = smooth(32, 32);
    let mut compressor = turbojpeg::Compressor::new().unwrap();
    compressor.set_optimize(true).unwrap();
    compressor.set_quality(80).unwrap();
    let (pixels, format) = (&picture.pixels[..], PixelFormat::RGB);
    compressor.compress_to_vec(turbojpeg::Image { pixels, width: 32, pitch: 96, height: 32, format }).unwrap()
}

fn pngs() {
    let picture = drawn();
    seed("decode_png", "rgb.png", picture.encode(ImageFormat::Png));
    seed("decode_png", "alpha.png", encode(&with_alpha(), ImageFormat::Png));
    seed("decode_png", "16-bit.png", encode(&with_alpha().into_rgba16().into(), ImageFormat::Png));
    seed(
        "decode_png",
        "grey.png",
        encode(&DynamicImage::from(picture.as_rgb()).into_luma8().into(), ImageFormat::Png),
    );
    let palette = (b"PLTE", vec![0, 0, 0, 255, 0, 0, 0, 255, 0]);
    let rows: [&[u8]; 3] = [&[0b0001_1000], &[0b0110_0100], &[0]];
    let of = |more| png(&[ihdr(4, 3, 2, 3), palette.clone(), more, idat(&rows), iend()]);
    seed("decode_png", "palette.png", of((b"tRNS", vec![255, 0])));
    seed("decode_png", "exif.png", of((b"eXIf", exif(8, true))));
    let interlaced = {
        let (name, mut body) = ihdr(1, 1, 8, 0);
        body[12] = 1;
        png(&[(name, body), idat(&[&[7]]), iend()])
    };
    seed("decode_png", "interlaced.png", interlaced);
}

fn tiffs() {
    let picture = drawn();
    seed("decode_tiff", "rgb.tif", grainy(24, 20).encode(ImageFormat::Tiff));
    seed(
        "decode_tiff",
        "16-bit.tif",
        encode(&DynamicImage::from(smooth(12, 10).as_rgb()).into_rgba16().into(), ImageFormat::Tiff),
    );
    seed("decode_tiff", "grey.tif", tiff(&tiff_entries(4, 4, 8, 1, 16), &[7; 16]));
    seed("decode_tiff", "bilevel.tif", tiff(&tiff_entries(8, 4, 1, 0, 4), &[0xA5; 4]));
    let with = |compression, bits, photometric, strip: &[u8]| {
        let mut entries = tiff_entries(4, 4, bits, photometric, strip.len() as u32);
        entries[3].3 = compression;
        tiff(&entries, strip)
    };
    seed("decode_tiff", "packbits.tif", with(32773, 8, 1, &[0xF1, 9]));
    // Clear, sixteen literals of zero and the end, in codes of nine bits.
    seed(
        "decode_tiff",
        "lzw.tif",
        with(5, 8, 1, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0x20]),
    );
    seed("decode_tiff", "deflate.tif", with(8, 8, 1, &idat(&[&[0; 7], &[0; 7]]).1));
    seed("decode_tiff", "palette.tif", {
        let mut entries = tiff_entries(4, 4, 8, 3, 16);
        entries.push((320, 3, 768, 8));
        tiff(&entries, &[3; 1600])
    });
    for (name, bytes) in [
        ("strip-bomb.tif", &include_bytes!("../../gpu-kernels/tests/field/strip_bomb.tif")[..]),
        ("tiled-planar.tif", include_bytes!("../../gpu-kernels/tests/field/tiled_planar.tif")),
    ] {
        seed("decode_tiff", name, bytes);
    }
    drop(picture);
}

fn others() {
    let picture = drawn();
    seed("decode_gif", "rgb.gif", picture.encode(ImageFormat::Gif));
    seed("decode_gif", "alpha.gif", encode(&with_alpha(), ImageFormat::Gif));
    // Two frames, the second smaller, and a comment.
    seed("decode_gif", "frames.gif", b"GIF89a\x04\0\x04\0\x80\0\0\0\0\0\xff\xff\xff\x21\xfe\x02hi\0\x21\xf9\x04\x05\x0a\0\0\0\x2c\0\0\0\0\x04\0\x04\0\0\x02\x04\x84\x8f\x09\x05\0\x2c\x01\0\x01\0\x02\0\x02\0\0\x02\x02\x84\x51\0\x3b");
    seed("decode_bmp", "24-bit.bmp", grainy(17, 13).encode(ImageFormat::Bmp));
    seed("decode_bmp", "alpha.bmp", encode(&with_alpha().crop_imm(0, 0, 12, 9), ImageFormat::Bmp));
    // Width, height, planes and bits, compression, colours; palette and rows.
    for (name, bits, compression, data) in [
        ("8-bit-rle.bmp", 8u16, 1u32, &[4u8, 1, 0, 0, 4, 0, 0, 0, 0, 2, 1, 1, 2, 0, 0, 0, 0, 1][..]),
        ("4-bit-rle.bmp", 4, 2, &[4, 0x01, 0, 0, 4, 0x10, 0, 0, 4, 0, 0, 1]),
        ("1-bit.bmp", 1, 0, &[0x90, 0, 0, 0, 0x60, 0, 0, 0, 0x90, 0, 0, 0]),
    ] {
        let mut file = b"BM\0\0\0\0\0\0\0\0\x3e\0\0\0\x28\0\0\0\x04\0\0\0\x03\0\0\0\x01\0".to_vec();
        file.extend(bits.to_le_bytes());
        file.extend(compression.to_le_bytes());
        file.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        file.extend([0, 0, 0, 0, 200, 100, 50, 0]);
        file.extend(data);
        seed("decode_bmp", name, file);
    }
    let lossless = encode(&with_alpha(), ImageFormat::WebP);
    seed("decode_webp", "lossless.webp", &lossless);
    let chunk = lossless[20..].to_vec();
    seed(
        "decode_webp",
        "extended.webp",
        webp(&[vp8x(0x18, 72, 56), (b"VP8L", chunk), (b"EXIF", exif(3, false))]),
    );
    // A key frame of 16 x 16 without any coefficient.
    let frame = [&[0x10u8, 0x01, 0, 0x9D, 0x01, 0x2A, 16, 0, 16, 0][..], &[0; 40]].concat();
    seed("decode_webp", "lossy.webp", webp(&[(b"VP8 ", frame.clone())]));
    let alpha = [&[0u8][..], &[128; 256]].concat();
    seed(
        "decode_webp",
        "lossy-alpha.webp",
        webp(&[vp8x(0x10, 16, 16), (b"ALPH", alpha), (b"VP8 ", frame.clone())]),
    );
    let mut animated = vec![0; 16];
    animated[6] = 15;
    animated[9] = 15;
    animated.extend(write::riff_chunks(&[(b"VP8 ", frame)]));
    seed(
        "decode_webp",
        "animated.webp",
        webp(&[vp8x(0x02, 16, 16), (b"ANIM", vec![0; 6]), (b"ANMF", animated)]),
    );
}

fn requests() {
    let png = smooth(4, 3).encode(ImageFormat::Png);
    let part = |field: &str, file: &[u8]| {
        let head = format!(
            "--edge\r\ncontent-disposition: form-data; name=\"{field}\"; filename=\"a.png\"\r\ncontent-type: image/png\r\n\r\n"
        );
        [head.as_bytes(), file, b"\r\n"].concat()
    };
    let form = [
        b"\n".to_vec(),
        part("file", &png),
        part("camera", b"pier"),
        part("image", b"two"),
        b"--edge--\r\n".to_vec(),
    ]
    .concat();
    seed("multipart", "form", &form);
    batches(&form);
    seed(
        "multipart",
        "form-quoted-boundary",
        [b"multipart/form-data; boundary=\"edge\"".to_vec(), form.clone()].concat(),
    );
    seed("multipart", "form-cut", &form[..form.len() - 10]);
    seed("multipart", "no-parts", b"multipart/form-data; boundary=x\n--x--\r\n");
    seed(
        "multipart",
        "bare-newlines",
        b"multipart/form-data; boundary=x\n--x\ncontent-disposition: form-data; name=file\n\nhi\n--x--\n",
    );
    seed("multipart", "written", b"\0one\xFEtwo\r\n--edg\xFE\xFE\r\n");
    seed("predict_json", "url", br#"{"image_url": "https://example.com/fish.jpg"}"#);
    seed("predict_json", "both", br#"{"image_url": "https://example.com/fish.jpg", "image": "AA=="}"#);
    seed("predict_json", "base64", b"\xef\xbb\xbf {\"image\": \"iVBOR\\r\\nw0KGgo=\"}");
    seed(
        "predict_json",
        "base64url",
        br#"{"image": "data:image/png;base64,iVBO_w0-Ggo", "image_url": null}"#,
    );
    seed("predict_json", "escapes", br#"{"im\u0061ge": "\u0041AAA", "x": [[{}]]}"#);
    for form in [0u8, 0x41, 0x72] {
        seed("predict_json", &format!("written-{form:02x}"), [&[0, form], &png[..]].concat());
    }
}

fn batches(form: &[u8]) {
    seed("batch_body", "form", [b"multipart/form-data; boundary=edge", form].concat());
    seed(
        "batch_body",
        "urls",
        b"\n{\"image_urls\": [\"http://a/1\", \"s3:\\/\\/b/\\u0032\"], \"camera\": \"pier\", \"top_k\": 3, \"request_id\": \"r-1\"}",
    );
    seed(
        "batch_body",
        "odd",
        b"\n\xef\xbb\xbf {\"camera\": null, \"image_urls\": [\"http://a/1\", 2], \"x\": {}}",
    );
}

fn messages() {
    seed("batch_message", "one", br#"{"image_url": "https://example.com/fish.jpg"}"#);
    seed("batch_message", "several", br#"{"request_id": "day-3", "image_urls": ["s3://photos/a.jpg", "blob:1"], "timestamp": 1.5e9, "num_images": 2}"#);
    seed("batch_message", "chunk", br#"{"request_id":"r","total":9,"chunks":3,"digest":"d","chunk":1,"first":3,"camera":"pier","top_k":3,"submitted_at":"2026-01-31T10:00:00Z","image_urls":["https://a/1","https://a/2","https://a/3"]}"#);
    seed("batch_message", "odd-types", br#"{"request_id": null, "image_urls": ["a", 1, null, {"a": []}], "camera": true, "top_k": -1, "other": [{"x": 1e999}]}"#);
}

fn manifests() {
    seed("bundle_manifest", "fish.toml", include_str!("../../models/fish/1/bundle.toml"));
    seed(
        "bundle_manifest",
        "small.toml",
        "format = 1\nname = \"n\"\nversion = \"1\"\nlabels = [\"a\", \"b\"]\n[input]\nname = \"x\"\nshape = [1, 3, 8, 8]\n[output]\nname = \"y\"\nshape = [1, 2]\nkind = \"logits\"\n[preprocess]\nresize = 9\ncrop = 8\nmean = [0, 1e3, -0.5]\nstd = [1, 255, 0.1]\n[[variant]]\nfile = \"m/model.onnx\"\nprecision = \"fp32\"\ninput_type = \"f32\"\ndevices = [\"cpu\", \"cuda\", \"tensorrt\"]\nsha256 = \"32678abc3481377edb9c33ac0cfcd737b75d751aad3a279460bb67cd2a50117d\"\n[[variant.data]]\nfile = \"w.bin\"\nsha256 = \"32678ABC3481377edb9c33ac0cfcd737b75d751aad3a279460bb67cd2a50117d\"\n[reference]\na = 0.25\nb = 0.75\n",
    );
}

fn outboxes() {
    let folder = tempfile::tempdir().unwrap();
    let (outbox, _) =
        Outbox::open(OutboxConfig { segment_bytes: 4 << 10, ..OutboxConfig::new(folder.path()) }).unwrap();
    for payload in [&b"{\"first\":1}"[..], b"", &[b'x'; 300]] {
        outbox.append(payload.to_vec()).wait().unwrap();
    }
    let segment = folder.path().join("00000000000000000001.seg");
    seed("outbox", "open-segment", std::fs::read(&segment).unwrap());
    outbox.close().unwrap();
    seed("outbox", "segment", std::fs::read(&segment).unwrap());
    // Steps as src/outbox/steps.rs reads them.
    seed("outbox", "steps-two-segments", b"\0\x00\x03one\x00\x03two\x02\x00\x05three\x04\x02");
    seed("outbox", "steps-gap-and-cursor", b"\x01\x00\x01a\x03\x04\x00\x01b\x0a\0\x02");
    seed(
        "outbox",
        "steps-damage",
        b"\0\x00\x09some text\x00\x02ab\x07\x05\xff\x00\x02cd\x06\x03\x05\x04\xff\0\x01\x02",
    );
    seed(
        "outbox",
        "steps-far-sequences",
        b"\0\x09\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x01a\x08\x80\0\0\0\0\0\0\0\x01b",
    );
    seed("outbox", "steps-damaged-cursor", b"\0\x00\x01a\x0b\x051 99\n");
}
