//! The CPU's lane device: decode, preprocess and infer on one thread, in buffers that are used again and again.

use std::time::Instant;

use gpu_kernels::{CpuPreprocessor, DecodeLimits, Decoder};

use super::{Classified, ClassifyError, LaneDevice, StageTimings};
use crate::engine::{Classifier, EngineError, Runtime};
use crate::models::{Bundle, ModelFile};

/// Encoded bytes to scores on one CPU core.
pub struct CpuPipeline {
    decoder: Decoder,
    preprocessor: CpuPreprocessor,
    classifier: Classifier,
    resize: u32,
    labels: usize,
}

impl CpuPipeline {
    /// Loads `model` of `bundle` and warms it with one run on a blank image, so that the first request is not slower
    /// than the next.
    ///
    /// # Errors
    /// [`EngineError`] if the model does not load, does not fit its bundle, or fails on the blank image.
    pub fn new(
        runtime: &Runtime,
        bundle: &Bundle,
        model: &ModelFile,
        limits: DecodeLimits,
    ) -> Result<Self, EngineError> {
        let spec = bundle.preprocess().clone();
        let mismatch = |reason: String| EngineError::Mismatch { path: model.path.clone(), reason };
        let mut pipeline = Self {
            resize: spec.resize,
            decoder: Decoder::new(limits).map_err(|e| mismatch(e.to_string()))?,
            preprocessor: CpuPreprocessor::new(spec).map_err(|e| mismatch(e.to_string()))?,
            classifier: Classifier::load(runtime, model)?,
            labels: model.labels,
        };
        pipeline.classifier.input()?.fill(0.0);
        let mut scores = Vec::with_capacity(pipeline.labels);
        pipeline.classifier.run(&mut scores)?;
        Ok(pipeline)
    }

    /// Encoded bytes to scores.
    ///
    /// # Errors
    /// [`ClassifyError`]; the pipeline takes the next image after any of them.
    pub fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        let started = Instant::now();
        let decoded = self.decoder.decode(image, self.resize)?;
        let decode_done = Instant::now();
        self.preprocessor.run(&decoded, self.classifier.input()?)?;
        let preprocess_done = Instant::now();
        let mut scores = Vec::with_capacity(self.labels);
        self.classifier.run(&mut scores)?;
        Ok(Classified {
            scores,
            format: decoded.format,
            width: decoded.original_width,
            height: decoded.original_height,
            timings: StageTimings {
                decode: decode_done - started,
                preprocess: preprocess_done - decode_done,
                infer: preprocess_done.elapsed(),
            },
        })
    }
}

impl LaneDevice for CpuPipeline {
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        Self::classify(self, image)
    }
}
