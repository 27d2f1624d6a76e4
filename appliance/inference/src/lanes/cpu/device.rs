//! The device of a lane on the CPU: the trait, and the pipeline that decodes, preprocesses and infers on one thread, in
//! buffers that are reused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_kernels::{CpuPreprocessor, DecodeLimits};

use crate::bundle::{Bundle, ModelFile};
use crate::engine::{Classifier, EngineError, Runtime};
use crate::lanes::decoder::{Encoded, LaneDecoder};
use crate::lanes::{Classified, ClassifyError, StageTimings};

/// A device that turns encoded bytes into scores: [`CpuPipeline`], or the simulated one of the tests.
pub trait LaneDevice: Send {
    /// Computes the scores of one image.
    ///
    /// # Errors
    /// [`ClassifyError`]; the device must remain usable after it.
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError>;

    /// Computes several images; one result per image, in order. A device that is faster with several images per run of its
    /// engine computes them together. An image that fails does not affect the others, nor does one that exceeds its time limit
    /// where the device detects it.
    fn classify_all(&mut self, images: &[Encoded<'_>]) -> Vec<Result<Classified, ClassifyError>> {
        images.iter().map(|image| self.classify(image.bytes)).collect()
    }
}

/// Builds the device of the lane with this number: on the lane's own thread at start-up and after a panic, on another thread
/// when it is built beside lanes that serve.
pub type DeviceFactory = Arc<dyn Fn(usize) -> Result<Box<dyn LaneDevice>, EngineError> + Send + Sync>;

/// The result for one of several images; `None` until it is known.
type Answer = Option<Result<Classified, ClassifyError>>;

/// Encoded bytes to scores on one CPU core.
pub struct CpuPipeline {
    decoder: LaneDecoder,
    preprocessor: CpuPreprocessor,
    classifier: Classifier,
    resize: u32,
    labels: usize,
    /// Index and properties of the images whose pixels are in the classifier's batch.
    decoded: Vec<(usize, Classified)>,
}

impl CpuPipeline {
    /// Loads `model` of `bundle` and warms it up with one run on a blank image, so that the first request is not slower than
    /// the next. Where the model allows it, [`LaneDevice::classify_all`] computes `images` per run: on the CPU that takes a
    /// twelfth less time per image with four, at the cost of latency.
    ///
    /// # Errors
    /// [`EngineError`] if the model does not load, does not fit its bundle, or fails on the blank image.
    pub fn new(
        runtime: &Runtime,
        bundle: &Bundle,
        model: &ModelFile,
        limits: DecodeLimits,
        images: usize,
    ) -> Result<Self, EngineError> {
        let spec = bundle.preprocess().clone();
        let mismatch = |reason: String| EngineError::Mismatch { path: model.path.clone(), reason };
        let mut pipeline = Self {
            resize: spec.resize,
            decoder: LaneDecoder::new(limits).map_err(|e| mismatch(e.to_string()))?,
            preprocessor: CpuPreprocessor::new(spec).map_err(|e| mismatch(e.to_string()))?,
            classifier: Classifier::load(runtime, model, images)?,
            labels: model.labels,
            decoded: Vec::new(),
        };
        pipeline.classifier.input()?.fill(0.0);
        let mut scores = Vec::with_capacity(pipeline.labels);
        pipeline.classifier.run(&mut scores)?;
        Ok(pipeline)
    }

    /// Computes the scores of one image.
    ///
    /// # Errors
    /// [`ClassifyError`]; the pipeline remains usable after it.
    pub fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        self.classify_one(image.into())
    }

    fn classify_one(&mut self, image: Encoded<'_>) -> Result<Classified, ClassifyError> {
        let mut classified = self.prepare(image, None)?;
        self.infer(&mut classified)?;
        Ok(classified)
    }

    /// Decodes and preprocesses an image into the single-image slot, or into this place of the batch slot.
    fn prepare(&mut self, image: Encoded<'_>, place: Option<usize>) -> Result<Classified, ClassifyError> {
        let started = Instant::now();
        let Self { decoder, classifier, preprocessor, .. } = self;
        decoder.with(image, self.resize, |decoded| {
            let decode_done = Instant::now();
            let slot = match place {
                None => classifier.input()?,
                Some(place) => {
                    let values = classifier.input()?.len();
                    let batch = classifier.batch_input()?;
                    batch.chunks_exact_mut(values).nth(place).unwrap_or_default()
                }
            };
            preprocessor.run(decoded, slot)?;
            Ok(Classified {
                scores: Vec::new(),
                format: decoded.format,
                width: decoded.original_width,
                height: decoded.original_height,
                timings: StageTimings {
                    decode: decode_done - started,
                    preprocess: decode_done.elapsed(),
                    infer: Duration::ZERO,
                },
            })
        })?
    }

    /// Computes the scores for the single-image slot.
    fn infer(&mut self, classified: &mut Classified) -> Result<(), EngineError> {
        let started = Instant::now();
        classified.scores.reserve_exact(self.labels);
        self.classifier.run(&mut classified.scores)?;
        classified.timings.infer = started.elapsed();
        Ok(())
    }

    /// Computes the scores for the images in the batch slot: in one run when it is full; one by one when it is not or when the
    /// run fails, so that one image's error does not affect the others.
    fn infer_batch(&mut self, answers: &mut [Answer]) {
        let started = Instant::now();
        let mut waiting = std::mem::take(&mut self.decoded);
        let full = self.classifier.batch() == Some(waiting.len());
        let scores = if full { self.classifier.run_batch().unwrap_or_default() } else { Vec::new() };
        if scores.is_empty() {
            for (place, (index, mut classified)) in waiting.drain(..).enumerate() {
                let done = self.classifier.take_from_batch(place);
                let done = done.and_then(|()| self.infer(&mut classified));
                answers[index] = Some(done.map(|()| classified).map_err(ClassifyError::from));
            }
        } else {
            let each = started.elapsed() / u32::try_from(scores.len()).unwrap_or(1);
            for (scores, (index, mut classified)) in scores.into_iter().zip(waiting.drain(..)) {
                classified.scores = scores;
                classified.timings.infer = each;
                answers[index] = Some(Ok(classified));
            }
        }
        self.decoded = waiting;
    }
}

impl LaneDevice for CpuPipeline {
    fn classify(&mut self, image: &[u8]) -> Result<Classified, ClassifyError> {
        Self::classify(self, image)
    }

    fn classify_all(&mut self, images: &[Encoded<'_>]) -> Vec<Result<Classified, ClassifyError>> {
        let Some(batch) = self.classifier.batch().filter(|_| images.len() > 1) else {
            return images.iter().map(|image| self.classify_one(*image)).collect();
        };
        let mut answers: Vec<Answer> = images.iter().map(|_| None).collect();
        for (index, image) in images.iter().enumerate() {
            match self.prepare(*image, Some(self.decoded.len())) {
                Err(error) => answers[index] = Some(Err(error)),
                Ok(classified) => self.decoded.push((index, classified)),
            }
            if self.decoded.len() == batch {
                self.infer_batch(&mut answers);
            }
        }
        self.infer_batch(&mut answers);
        answers.into_iter().flatten().collect()
    }
}
