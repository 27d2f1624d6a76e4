//! From what a graph puts out to scores that may leave the box: softmax for logits, and the contract that every answer keeps.

use super::EngineError;
use crate::models::OutputKind;

/// How far a score may lie outside 0 to 1: half precision rounds there.
const RANGE_TOLERANCE: f32 = 1e-3;
/// How far the sum of an image's scores may lie from 1. The output of a quantised softmax is off by up to half a step of
/// 1/256 per label.
const SUM_TOLERANCE: f32 = 0.05;

/// Turns the output of one image into scores between 0 and 1 that add up to 1 within the tolerance.
///
/// # Errors
/// [`EngineError::NotFinite`], or [`EngineError::OutOfRange`] and [`EngineError::Sum`] for values that are no
/// probabilities.
pub(super) fn finish(kind: OutputKind, scores: &mut [f32]) -> Result<(), EngineError> {
    if let Some(label) = scores.iter().position(|score| !score.is_finite()) {
        return Err(EngineError::NotFinite { label });
    }
    if kind == OutputKind::Logits {
        softmax(scores);
        return Ok(());
    }
    let allowed = -RANGE_TOLERANCE..=1.0 + RANGE_TOLERANCE;
    if let Some(label) = scores.iter().position(|score| !allowed.contains(score)) {
        return Err(EngineError::OutOfRange { label, score: scores[label] });
    }
    let sum: f32 = scores.iter().sum();
    if (sum - 1.0).abs() > SUM_TOLERANCE {
        return Err(EngineError::Sum { sum });
    }
    for score in scores {
        *score = score.clamp(0.0, 1.0);
    }
    Ok(())
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
    use super::EngineError;
    use crate::models::OutputKind;

    fn finish(kind: OutputKind, values: &[f32]) -> Result<Vec<f32>, EngineError> {
        let mut scores = values.to_vec();
        super::finish(kind, &mut scores).map(|()| scores)
    }

    #[test]
    fn probabilities_are_kept_and_what_rounding_adds_is_cut_off() {
        let scores = finish(OutputKind::Probabilities, &[0.25, 0.75]).unwrap();
        assert_eq!(scores, [0.25, 0.75]);
        assert_eq!(finish(OutputKind::Probabilities, &[1.0005, -0.0005]).unwrap(), [1.0, 0.0]);
        assert_eq!(finish(OutputKind::Probabilities, &[0.98, 0.0, 0.0]).unwrap(), [0.98, 0.0, 0.0]);
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
