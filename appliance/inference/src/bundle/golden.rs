//! Pictures that a model must compute correctly before it serves: a bundle's golden cases, or built-in pictures if it has
//! none.

use super::{Bundle, BundleError};

/// Side of the built-in pictures in pixels.
const SIDE: u32 = 64;

/// A picture in memory and its expected result.
#[derive(Clone, Debug)]
pub struct GoldenCase {
    /// File name in the bundle, or the name of a built-in picture.
    pub file: String,
    /// The encoded picture.
    pub bytes: Vec<u8>,
    /// The expected result; `None` for a built-in picture, for which any valid scores pass.
    pub expected: Option<Expected>,
}

/// The expected result of a golden case.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Index of the expected top label.
    pub label: usize,
    /// Minimum score of that label.
    pub min_score: f32,
}

/// Why a golden case failed.
#[derive(Debug)]
pub enum GoldenFault<E> {
    /// The bundle's files can't be read.
    Bundle(BundleError),
    /// The picture could not be computed.
    Computing {
        /// Name of the case.
        file: String,
        /// The error of the computation.
        error: E,
    },
    /// The result is wrong.
    Wrong {
        /// Name of the case.
        file: String,
        /// What was expected and what was computed.
        reason: String,
    },
}

/// Computes each of the bundle's pictures and checks the results.
///
/// # Errors
/// [`GoldenFault`] of the first case that fails.
pub fn run_golden<E>(
    bundle: &Bundle,
    mut compute: impl FnMut(&GoldenCase) -> Result<Vec<f32>, E>,
) -> Result<(), GoldenFault<E>> {
    let cases = bundle.golden_cases().map_err(GoldenFault::Bundle)?;
    cases.iter().try_for_each(|case| case.check(bundle, compute(case)).map(drop))
}

impl GoldenCase {
    /// Checks the computed scores of the case. Returns the top label and its score.
    ///
    /// # Errors
    /// [`GoldenFault`].
    pub fn check<E>(
        &self,
        bundle: &Bundle,
        computed: Result<Vec<f32>, E>,
    ) -> Result<(usize, f32), GoldenFault<E>> {
        let file = || self.file.clone();
        let scores = computed.map_err(|error| GoldenFault::Computing { file: file(), error })?;
        let judged = self.judge(&bundle.manifest().labels, &scores);
        judged.map_err(|reason| GoldenFault::Wrong { file: file(), reason })
    }

    /// Checks scores against the case, with the bundle's `labels`. Returns the top label and its score.
    ///
    /// # Errors
    /// The expected and the computed result, as a sentence.
    pub fn judge(&self, labels: &[String], scores: &[f32]) -> Result<(usize, f32), String> {
        let name = |label: usize| labels.get(label).map_or("nothing", String::as_str);
        let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let Some(best) = best else { return Err("the model gave no scores".into()) };
        let Some(Expected { label, min_score }) = self.expected else { return Ok((best, scores[best])) };
        let score = scores.get(label).copied().unwrap_or(0.0);
        if best == label && score >= min_score {
            return Ok((best, score));
        }
        Err(format!(
            "expected {} with at least {min_score}, got {} and a score of {score} for {}",
            name(label),
            name(best),
            name(label)
        ))
    }
}

/// Pictures of plain colours, a gradient, a checkerboard and noise: different enough that a graph which outputs logits yields
/// invalid probabilities for at least one of them.
pub(super) fn built_in() -> Vec<GoldenCase> {
    let mut random = fastrand::Rng::with_seed(1);
    let case = |name: &str, pixel: &mut dyn FnMut(u8, u8) -> [u8; 3]| GoldenCase {
        file: format!("built-in {name}"),
        bytes: bmp(pixel),
        expected: None,
    };
    vec![
        case("black", &mut |_, _| [0; 3]),
        case("white", &mut |_, _| [255; 3]),
        case("red", &mut |_, _| [220, 10, 10]),
        case("blue", &mut |_, _| [10, 10, 220]),
        case("gradient", &mut |x, y| [4 * x, 4 * y, 2 * (x / 2 + y / 2)]),
        case("checkerboard", &mut |x, y| if (x / 8 + y / 8) % 2 == 0 { [240; 3] } else { [20, 60, 100] }),
        case("noise", &mut |_, _| [random.u8(..), random.u8(..), random.u8(..)]),
    ]
}

/// A BMP of 24 bits per pixel: the format that needs no encoder.
fn bmp(pixel: &mut dyn FnMut(u8, u8) -> [u8; 3]) -> Vec<u8> {
    let data = 3 * SIDE * SIDE;
    let mut bytes = b"BM".to_vec();
    for value in [54 + data, 0, 54, 40, SIDE, SIDE] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(1u16.to_le_bytes());
    bytes.extend(24u16.to_le_bytes());
    for value in [0, data, 2835, 2835, 0, 0] {
        bytes.extend(value.to_le_bytes());
    }
    for y in 0..SIDE as u8 {
        for x in 0..SIDE as u8 {
            let [red, green, blue] = pixel(x, y);
            bytes.extend([blue, green, red]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use gpu_kernels::{DecodeLimits, Decoder};

    use super::*;

    #[test]
    fn the_built_in_pictures_are_the_same_each_time_and_decode_to_what_they_say() {
        let cases = built_in();
        for (case, again) in cases.iter().zip(built_in()) {
            assert_eq!(case.bytes, again.bytes, "{}", case.file);
            let mut decoder = Decoder::new(DecodeLimits::default()).unwrap();
            let image = decoder.decode(&case.bytes, u32::MAX).unwrap();
            assert_eq!((image.width, image.height), (SIDE, SIDE));
            if case.file == "built-in red" {
                assert!(image.pixels.chunks_exact(3).all(|pixel| pixel == [220, 10, 10]));
            }
        }
        assert_eq!(cases.len(), 7);
    }

    #[test]
    fn a_built_in_picture_takes_any_scores_and_a_golden_case_only_its_own() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let mut case = GoldenCase { file: String::new(), bytes: Vec::new(), expected: None };
        assert_eq!(case.judge(&labels, &[0.4, 0.6]), Ok((1, 0.6)));
        assert!(case.judge(&labels, &[]).is_err());
        case.expected = Some(Expected { label: 0, min_score: 0.5 });
        let error = case.judge(&labels, &[0.4, 0.6]).unwrap_err();
        assert!(error.contains("expected a with at least 0.5, got b and a score of 0.4 for a"), "{error}");
        assert_eq!(case.judge(&labels, &[0.6, 0.4]), Ok((0, 0.6)));
    }
}
