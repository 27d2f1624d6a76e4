//! The parameters of preprocessing: their bounds and how they are read.

use gpu_kernels::{CpuPreprocessor, PreprocessSpec};

use crate::draw::picture;

fn sound() -> PreprocessSpec {
    PreprocessSpec { resize: 256, crop: 224, mean: [127.0; 3], std: [128.0; 3] }
}

#[test]
fn the_output_is_normalised_per_channel_in_planes() {
    let spec = PreprocessSpec { resize: 2, crop: 2, mean: [10.0, 20.0, 30.0], std: [1.0, 2.0, 4.0] };
    let drawn = picture(2, 2, |x, y, channel| (x + 2 * y) as u8 + [10, 20, 30][channel as usize]);
    let mut out = [0.0; 12];
    CpuPreprocessor::new(spec).unwrap().run(&drawn.as_image(), &mut out).unwrap();
    assert_eq!(out, [0.0, 1.0, 2.0, 3.0, 0.0, 0.5, 1.0, 1.5, 0.0, 0.25, 0.5, 0.75]);
}

#[test]
fn values_out_of_bounds_are_refused_by_name() {
    let tiny = f32::MIN_POSITIVE;
    for (spec, message) in [
        (PreprocessSpec { resize: 0, crop: 0, ..sound() }, "preprocess resize = 0: must be 1 to 4096"),
        (PreprocessSpec { resize: 5000, ..sound() }, "preprocess resize = 5000: must be 1 to 4096"),
        (PreprocessSpec { crop: 0, ..sound() }, "preprocess crop = 0: must be 1 to 256, the value of resize"),
        (
            PreprocessSpec { crop: 257, ..sound() },
            "preprocess crop = 257: must be 1 to 256, the value of resize",
        ),
        (
            PreprocessSpec { std: [1.0, 0.0, 1.0], ..sound() },
            "preprocess std = [1.0, 0.0, 1.0]: must be finite and above 0",
        ),
        (
            PreprocessSpec { std: [f32::NAN; 3], ..sound() },
            "preprocess std = [NaN, NaN, NaN]: must be finite and above 0",
        ),
        (
            PreprocessSpec { mean: [f32::INFINITY, 0.0, 0.0], ..sound() },
            "preprocess mean = [inf, 0.0, 0.0]: must be finite",
        ),
    ] {
        assert_eq!(spec.validate().unwrap_err().to_string(), message);
        assert!(CpuPreprocessor::new(spec).is_err());
    }
    assert!(PreprocessSpec { std: [tiny; 3], ..sound() }.validate().is_err());
    assert!(PreprocessSpec { crop: 256, ..sound() }.validate().is_ok());
}

#[test]
fn a_spec_is_read_from_toml_and_unknown_keys_are_refused() {
    let text = "resize = 256\ncrop = 224\nmean = [127.0, 127.0, 127.0]\nstd = [128.0, 128.0, 128.0]\n";
    let spec: PreprocessSpec = toml::from_str(text).unwrap();
    assert_eq!(spec, sound());
    assert_eq!(toml::from_str::<PreprocessSpec>(&toml::to_string(&spec).unwrap()).unwrap(), spec);
    let error = toml::from_str::<PreprocessSpec>(&format!("{text}filter = \"lanczos\"\n")).unwrap_err();
    assert!(error.to_string().contains("unknown field `filter`"), "{error}");
}
