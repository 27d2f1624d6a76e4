//! From a graph's output to scores: softmax for logits, and the contract that every answer meets.

use super::EngineError;
use crate::bundle::{ModelFile, OutputKind, Precision};

/// Tolerance for a score outside 0 to 1, for rounding in half precision.
const RANGE_TOLERANCE: f32 = 1e-3;
/// Tolerance for the sum of an image's scores where they are floating-point numbers. In a softmax in half precision each score
/// is rounded to 11 bits a few times (exponential, sum, quotient), each by 2^-11 of its value, so that the sum is off by a few
/// times 2^-11, or 0.0005. Some engines compute single precision in half, so it has the same tolerance.
const FLOAT_TOLERANCE: f32 = 0.01;
/// Additional tolerance per label where the scores may be 8-bit numbers: those are multiples of 1/256, each off by half a
/// step.
const QUANTISED_TOLERANCE: f32 = 1.0 / 512.0;

/// The kind and precision of a model's output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contract {
    kind: OutputKind,
    sum_tolerance: f32,
}

impl Contract {
    pub(super) fn of(model: &ModelFile) -> Self {
        Self::new(model.output_kind, model.precision, model.labels)
    }

    fn new(kind: OutputKind, precision: Precision, labels: usize) -> Self {
        let quantised = match precision {
            Precision::Int8 => labels as f32 * QUANTISED_TOLERANCE,
            Precision::Fp32 | Precision::Fp16 => 0.0,
        };
        Self { kind, sum_tolerance: FLOAT_TOLERANCE + quantised }
    }

    /// Converts the output of one image into scores between 0 and 1 that add up to 1 within the tolerance.
    ///
    /// # Errors
    /// [`EngineError::NotFinite`], [`EngineError::OutOfRange`] or [`EngineError::Sum`] if the values are not probabilities.
    pub(super) fn finish(&self, scores: &mut [f32]) -> Result<(), EngineError> {
        if let Some(label) = scores.iter().position(|score| !score.is_finite()) {
            return Err(EngineError::NotFinite { label });
        }
        if self.kind == OutputKind::Logits {
            softmax(scores);
            return Ok(());
        }
        let allowed = -RANGE_TOLERANCE..=1.0 + RANGE_TOLERANCE;
        if let Some(label) = scores.iter().position(|score| !allowed.contains(score)) {
            return Err(EngineError::OutOfRange { label, score: scores[label] });
        }
        let sum: f32 = scores.iter().sum();
        // With many labels in 8 bits all scores may be rounded to 0, which is not an answer.
        if (sum - 1.0).abs() > self.sum_tolerance || sum <= 0.0 {
            return Err(EngineError::Sum { sum });
        }
        for score in scores {
            *score = score.clamp(0.0, 1.0);
        }
        Ok(())
    }
}

/// The softmax of finite values; subtracting the largest keeps the exponentials finite.
fn softmax(values: &mut [f32]) {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for value in &mut *values {
        *value = (*value - largest).exp();
    }
    // At least 1, the exponential of the largest.
    let sum: f32 = values.iter().sum();
    for value in values {
        *value /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::{Contract, EngineError};
    use crate::bundle::{OutputKind, Precision};

    fn finish(kind: OutputKind, values: &[f32]) -> Result<Vec<f32>, EngineError> {
        finish_in(Precision::Fp32, kind, values)
    }

    fn finish_in(precision: Precision, kind: OutputKind, values: &[f32]) -> Result<Vec<f32>, EngineError> {
        let mut scores = values.to_vec();
        Contract::new(kind, precision, values.len()).finish(&mut scores).map(|()| scores)
    }

    fn softmax_of(logits: &[f32]) -> Vec<f32> {
        finish(OutputKind::Logits, logits).unwrap()
    }

    #[test]
    fn the_tolerance_is_what_rounding_takes() {
        let mut random = fastrand::Rng::with_seed(11);
        for labels in [2, 17, 100, 500, 1000] {
            for _ in 0..200 {
                let spread = 20.0 * random.f32();
                let logits: Vec<f32> = (0..labels).map(|_| spread * random.f32()).collect();
                let exact = softmax_of(&logits);
                let half: Vec<f32> = exact.iter().map(|&s| half::f16::from_f32(s).to_f32()).collect();
                finish_in(Precision::Fp16, OutputKind::Probabilities, &half).unwrap();
                let eighth: Vec<f32> = exact.iter().map(|s| (s * 256.0).round() / 256.0).collect();
                match finish_in(Precision::Int8, OutputKind::Probabilities, &eighth) {
                    // The distribution is too flat for 8 bits.
                    Err(EngineError::Sum { sum }) => assert_eq!(sum, 0.0, "{labels} labels"),
                    outcome => drop(outcome.unwrap()),
                }
            }
        }
        // A larger deviation is not explained by rounding, as with independent sigmoids.
        let sum = |precision, labels: usize, sum: f32| {
            finish_in(precision, OutputKind::Probabilities, &vec![sum / labels as f32; labels])
        };
        for precision in [Precision::Fp32, Precision::Fp16] {
            assert!(sum(precision, 17, 1.005).is_ok() && sum(precision, 17, 1.02).is_err());
        }
        assert!(sum(Precision::Int8, 17, 1.04).is_ok() && sum(Precision::Int8, 17, 1.05).is_err());
        assert!(sum(Precision::Int8, 100, 1.2).is_ok() && sum(Precision::Int8, 100, 0.75).is_err());
    }

    #[test]
    fn probabilities_are_kept_and_what_rounding_adds_is_cut_off() {
        let scores = finish(OutputKind::Probabilities, &[0.25, 0.75]).unwrap();
        assert_eq!(scores, [0.25, 0.75]);
        assert_eq!(finish(OutputKind::Probabilities, &[1.0005, -0.0005]).unwrap(), [1.0, 0.0]);
        assert_eq!(finish(OutputKind::Probabilities, &[0.992, 0.0, 0.0]).unwrap(), [0.992, 0.0, 0.0]);
    }

    #[test]
    fn what_is_no_probability_is_refused_with_its_number() {
        let refusal = |values: &[f32]| finish(OutputKind::Probabilities, values).unwrap_err().to_string();
        let range = refusal(&[2.11, -1.3, 0.1]);
        assert!(range.contains("2.11") && range.contains("label 0") && range.contains("logits"), "{range}");
        assert!(refusal(&[0.5, -0.2, 0.7]).contains("-0.2"));
        let sum = refusal(&[0.5, 0.7, 0.1]);
        assert!(sum.contains("1.3") && sum.contains("logits"), "{sum}");
        assert!(refusal(&[0.0, 0.0]).contains("add up to 0"));
        assert!(refusal(&[f32::NAN, 1.0]).contains("not a finite number"));
    }

    #[test]
    fn logits_of_any_size_become_probabilities() {
        let scores = finish(OutputKind::Logits, &[1000.0, 999.0, -1e30]).unwrap();
        assert!((scores[0] - 0.731_058_6).abs() < 1e-6 && (scores[1] - 0.268_941_4).abs() < 1e-6);
        assert_eq!(scores[2], 0.0);
        assert_eq!(finish(OutputKind::Logits, &[-3e38, -3e38]).unwrap(), [0.5, 0.5]);
        assert!(finish(OutputKind::Logits, &[f32::INFINITY, 0.0]).is_err());
    }
}
