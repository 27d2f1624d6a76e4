//! Several images in one run, on the real engine: each gets what it gets alone.

use std::path::Path;

use gpu_kernels::DecodeLimits;

use super::{CpuPipeline, LaneDevice};
use crate::bundle::{Bundle, DeviceTag};
use crate::engine::Runtime;
use crate::lanes::{Classified, ClassifyError, Encoded};

fn pipeline(images: usize) -> CpuPipeline {
    let bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fish/1")).unwrap();
    let model = bundle.variant(DeviceTag::Cpu, None).unwrap();
    CpuPipeline::new(&Runtime::load(None).unwrap(), &bundle, &model, DecodeLimits::default(), images).unwrap()
}

fn pictures() -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fish/1/golden");
    let mut files: Vec<_> = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn best(classified: &Classified) -> usize {
    (0..classified.scores.len())
        .max_by(|&a, &b| classified.scores[a].total_cmp(&classified.scores[b]))
        .unwrap()
}

fn encoded<'a>(images: &[&'a [u8]]) -> Vec<Encoded<'a>> {
    images.iter().map(|&image| image.into()).collect()
}

#[test]
fn an_image_that_is_not_decoded_in_time_fails_alone() {
    let golden = pictures();
    let over = Encoded { bytes: &golden[0], until: std::time::Instant::now().into() };
    let in_time = Encoded::from(&golden[0][..]);
    for mut pipeline in [pipeline(1), pipeline(4)] {
        let answers = pipeline.classify_all(&[in_time, over, in_time]);
        let codes: Vec<_> =
            answers.into_iter().map(|answer| answer.map(drop).map_err(|error| error.to_string())).collect();
        assert!(codes[0].is_ok() && codes[2].is_ok(), "{codes:?}");
        assert!(codes[1].as_ref().unwrap_err().contains("took too long"), "{codes:?}");
    }
}

#[test]
fn images_that_are_computed_together_get_what_each_gets_alone() {
    let golden = pictures();
    let (mut one, mut four) = (pipeline(1), pipeline(4));
    for count in [1, 2, 3, 4, 5, 9] {
        let images: Vec<&[u8]> = golden.iter().cycle().take(count).map(Vec::as_slice).collect();
        let together = four.classify_all(&encoded(&images));
        assert_eq!(together.len(), count);
        for (image, together) in images.iter().zip(together) {
            let (alone, together) = (one.classify(image).unwrap(), together.unwrap());
            assert_eq!(
                (best(&alone), alone.width, alone.height),
                (best(&together), together.width, together.height)
            );
            for (a, b) in alone.scores.iter().zip(&together.scores) {
                assert!((a - b).abs() < 1e-3, "{a} alone and {b} among {count}");
            }
        }
    }
}

#[test]
fn an_image_that_fails_among_others_fails_alone() {
    let golden = pictures();
    let (mut one, mut four) = (pipeline(1), pipeline(4));
    let broken: &[u8] = b"no picture";
    let images: Vec<&[u8]> = vec![&golden[0], broken, &golden[0], &golden[0], &golden[0], broken];
    let alone = one.classify(&golden[0]).unwrap();
    for (image, answer) in images.iter().zip(four.classify_all(&encoded(&images))) {
        if *image == broken {
            assert!(matches!(answer, Err(ClassifyError::Decode(_))));
        } else {
            assert_eq!(best(&answer.unwrap()), best(&alone));
        }
    }
    assert_eq!(best(&four.classify(&golden[0]).unwrap()), best(&alone));
}
