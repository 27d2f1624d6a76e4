//! A lane on a GPU gives the same answers as a lane on the CPU.

use std::io::Cursor;

use image::{ImageFormat, RgbImage};

use inference::bundle::{GoldenCase, run_golden};

use super::*;

/// Asserts that no score differs by more than `allowed`.
fn compare(model: &Model, lanes: &Lanes, pictures: &[Bytes], allowed: f32) {
    let mut cpu = model.cpu();
    let answers = submit(lanes, pictures);
    for (n, (answer, picture)) in answers.into_iter().zip(pictures).enumerate() {
        let (found, _) = answer.blocking_recv().unwrap().unwrap();
        let wanted = cpu.classify(picture).unwrap();
        assert_eq!((found.format, found.width, found.height), (wanted.format, wanted.width, wanted.height));
        let differ = found.scores.iter().zip(&wanted.scores).map(|(f, w)| (f - w).abs()).fold(0.0, f32::max);
        assert!(differ <= allowed, "picture {n}: a score differs by {differ}");
        if wanted.scores[best(&wanted.scores)] > 0.5 + allowed {
            assert_eq!(best(&found.scores), best(&wanted.scores), "picture {n}");
        }
        assert!(found.timings.decode > Duration::ZERO && found.timings.infer > Duration::ZERO);
    }
}

#[test]
fn decoded_on_the_cpu_the_scores_are_those_of_the_cpu() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let (lanes, seen) = start(&model, settings(driver, None, &[0]), None);
    compare(&model, &lanes, &pictures(&model), 0.06);
    lanes.stop();
    drop(lanes);
    let runs = seen.runs.lock().clone();
    assert!(runs.iter().all(|&images| images <= 4), "{runs:?}");
    assert_eq!((driver.blocks(0), driver.users(0), driver.violations()), (0, 0, 0));
}

#[test]
fn with_nvjpeg_both_decode_and_the_scores_are_nearly_those_of_the_cpu() {
    let driver = simulated_driver();
    let nvjpeg = nvjpeg::Simulated::new();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let (lanes, _) = start(&model, settings(driver, Some(&nvjpeg), &[1]), None);
    let pictures = pictures(&model);
    // nvJPEG decodes at full size, the CPU at a smaller one; and nvJPEG does not smooth chroma.
    compare(&model, &lanes, &pictures, 0.25);
    compare(&model, &lanes, &pictures, 0.25);
    assert!(nvjpeg.initialisations() > 0, "nvJPEG had nothing to do");
    lanes.stop();
    drop(lanes);
    nvjpeg.check();
    assert_eq!((driver.blocks(1), driver.users(1), driver.violations()), (0, 0, 0));
}

#[test]
fn in_half_precision_the_golden_cases_come_out_right() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cuda, Precision::Fp16);
    let (lanes, _) = start(&model, settings(driver, None, &[2]), None);
    let computed = |case: &GoldenCase| {
        let answer = submit(&lanes, &[case.bytes.clone().into()]).remove(0).blocking_recv();
        answer.unwrap().map(|(classified, _)| classified.scores)
    };
    run_golden(&model.bundle, computed).unwrap();
}

/// A bundle of the small model that classifies the prevailing colour, with this graph and this line in its [output].
fn colours(dir: &Path, graph: &str, output: &str) -> Model {
    use sha2::{Digest, Sha256};
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/models");
    let sha256 = |file: &str| {
        let digest = Sha256::digest(std::fs::read(made.join(file)).unwrap());
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    std::fs::copy(made.join(graph), dir.join("model.onnx")).unwrap();
    std::fs::copy(made.join("red.png"), dir.join("red.png")).unwrap();
    std::fs::write(dir.join("labels.txt"), "red\ngreen\nblue\n").unwrap();
    let (model, picture) = (sha256(graph), sha256("red.png"));
    let manifest = format!(
        "format = 1\nname = \"colours\"\nversion = \"1\"\nlabels = [\"red\", \"green\", \"blue\"]\n\
         [input]\nname = \"image\"\nshape = [0, 3, 8, 8]\n[output]\nname = \"scores\"\nshape = [0, 3]\n{output}\n\
         [preprocess]\nresize = 8\ncrop = 8\nmean = [127.0, 127.0, 127.0]\nstd = [128.0, 128.0, 128.0]\n\
         [[variant]]\nfile = \"model.onnx\"\nprecision = \"fp32\"\ninput_type = \"f32\"\ndevices = [\"cpu\"]\n\
         sha256 = \"{model}\"\n\
         [[golden]]\nfile = \"red.png\"\nsha256 = \"{picture}\"\nlabel = \"red\"\nmin_score = 0.5\n"
    );
    std::fs::write(dir.join("bundle.toml"), manifest).unwrap();
    let bundle = Bundle::open(dir).unwrap();
    let file = bundle.variant(DeviceTag::Cpu, None).unwrap();
    Model { runtime: Runtime::load(None).unwrap(), bundle: Arc::new(bundle), file }
}

#[test]
fn logits_that_are_declared_become_probabilities_and_others_are_refused() {
    let driver = simulated_driver();
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let declared = colours(folders[0].path(), "logits.onnx", "kind = \"logits\"");
    let softmax = colours(folders[1].path(), "colours.onnx", "");
    let drawn = |x: u32, y: u32| image::Rgb([(x * 16) as u8, (y * 16) as u8, (x ^ y) as u8]);
    let mut file = Cursor::new(Vec::new());
    RgbImage::from_fn(16, 16, drawn).write_to(&mut file, ImageFormat::Png).unwrap();
    let picture = [Bytes::from(file.into_inner())];
    let scores = |model: &Model| {
        let (lanes, _) = start(model, settings(driver, None, &[14]), None);
        let answer = submit(&lanes, &picture).remove(0);
        answer.blocking_recv().unwrap().unwrap().0.scores
    };
    let (ours, graphs) = (scores(&declared), scores(&softmax));
    assert!((ours.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{ours:?}");
    for (ours, graphs) in ours.iter().zip(&graphs) {
        assert!((ours - graphs).abs() < 1e-5, "{ours} is not {graphs}");
    }
    compare(&declared, &start(&declared, settings(driver, None, &[14]), None).0, &picture, 0.01);
    let undeclared = colours(folders[2].path(), "logits.onnx", "");
    let settings = settings(driver, None, &[14]);
    let factory = gpu_factory(&undeclared.runtime, &undeclared.bundle, &undeclared.file, &Arc::new(settings));
    let error = factory(0).err().expect("logits that are not declared are refused").to_string();
    assert!(error.contains("kind = \"logits\""), "{error}");
}

#[test]
fn every_kind_of_image_and_of_bad_image_is_answered_as_on_the_cpu() {
    let driver = simulated_driver();
    let nvjpeg = nvjpeg::Simulated::new();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let checking = |mut settings: GpuSettings| {
        settings.decode.check_jpeg = true;
        settings
    };
    let (lanes, _) = start(&model, checking(settings(driver, Some(&nvjpeg), &[3])), None);
    let drawn = RgbImage::from_fn(300, 400, |x, y| image::Rgb([x as u8, y as u8, (x ^ y) as u8]));
    let mut images = Vec::new();
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Tiff]
    {
        let mut file = Cursor::new(Vec::new());
        drawn.write_to(&mut file, format).unwrap();
        images.push(Bytes::from(file.into_inner()));
    }
    compare(&model, &lanes, &images, 0.06);
    let jpeg = pictures(&model).swap_remove(0);
    let mut closed = jpeg[..jpeg.len() / 2].to_vec();
    closed.extend([0xFF, 0xD9]);
    let mut bad = vec![
        Bytes::from_static(b"no image at all"),
        Bytes::new(),
        jpeg.slice(..jpeg.len() / 2),
        Bytes::from(closed),
    ];
    bad.extend(images.iter().map(|image| image.slice(..image.len() / 3)));
    let mut cpu = model.cpu();
    for (n, (answer, image)) in submit(&lanes, &bad).into_iter().zip(&bad).enumerate() {
        let found = answer.blocking_recv().unwrap();
        match cpu.classify(image) {
            Err(wanted) => {
                let found = found.unwrap_err();
                assert_eq!(found.code(), LaneError::from(wanted).code(), "image {n}: {found}");
            }
            Ok(wanted) => assert_eq!(best(&found.unwrap().0.scores), best(&wanted.scores), "image {n}"),
        }
    }
    lanes.stop();
    drop(lanes);
    nvjpeg.check();
}

#[test]
fn what_the_hardware_engines_refuse_nvjpegs_kernels_or_the_cpu_decode() {
    let driver = simulated_driver();
    let nvjpeg = nvjpeg::Simulated::new();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let (lanes, _) = start(&model, settings(driver, Some(&nvjpeg), &[15]), None);
    let before = nvjpeg.initialisations();
    let mut compressor = turbojpeg::Compressor::new().unwrap();
    compressor.set_subsamp(turbojpeg::Subsamp::Sub2x2).unwrap();
    compressor.set_progressive(true).unwrap();
    let drawn = RgbImage::from_fn(320, 300, |x, y| image::Rgb([x as u8, y as u8, (x + y) as u8]));
    let picture = turbojpeg::Image {
        pixels: drawn.as_raw().as_slice(),
        width: 320,
        pitch: 960,
        height: 300,
        format: turbojpeg::PixelFormat::RGB,
    };
    let progressive = Bytes::from(compressor.compress_to_vec(picture).unwrap());
    compare(&model, &lanes, &vec![progressive; 40], 0.25);
    assert!(nvjpeg.initialisations() > before, "nvJPEG's kernels had nothing to do");
    lanes.stop();
    drop(lanes);
    nvjpeg.check();
    assert_eq!((driver.blocks(15), driver.users(15), driver.violations()), (0, 0, 0));
}
