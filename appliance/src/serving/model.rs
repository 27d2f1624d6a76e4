//! The identity of the model that serves, as answers, events and cache keys need it.

use cloud_sync::event::{ModelRef, Score};
use inference::bundle::{Bundle, ModelFile, Precision};

/// The model that serves.
#[derive(Clone, Debug)]
pub struct ServingModel {
    /// Model name.
    pub name: String,
    /// Model version.
    pub version: String,
    /// Hex SHA-256 of the model file.
    pub digest: String,
    /// Labels in output order.
    pub labels: Vec<String>,
    /// Arithmetic of the variant.
    pub precision: Precision,
    key: [u8; 32],
}

impl ServingModel {
    /// The identity of `model` in `bundle`.
    pub fn new(bundle: &Bundle, model: &ModelFile) -> Self {
        let manifest = bundle.manifest();
        // The bundle's digest covers labels and preprocess, the model's the arithmetic: together all parameters of
        // the computation.
        let key = blake3::Hasher::new()
            .update(bundle.digest().as_bytes())
            .update(model.sha256.as_bytes())
            .finalize();
        Self {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            digest: model.sha256.clone(),
            labels: manifest.labels.clone(),
            precision: model.precision,
            key: *key.as_bytes(),
        }
    }

    /// Key of the content cache: image, model and parameters.
    pub fn cache_key(&self, image: &blake3::Hash) -> [u8; 32] {
        *blake3::keyed_hash(&self.key, image.as_bytes()).as_bytes()
    }

    /// The model as events name it.
    pub fn event_ref(&self) -> ModelRef {
        ModelRef { name: self.name.clone(), version: self.version.clone(), digest: self.digest.clone() }
    }

    /// The `top_k` best labels, best first; equal scores keep the labels' order.
    pub fn best(&self, scores: &[f32], top_k: usize) -> Vec<Score> {
        let mut order: Vec<usize> = (0..scores.len().min(self.labels.len())).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(top_k.max(1));
        order.into_iter().map(|i| Score { label: self.labels[i].clone(), score: scores[i] }).collect()
    }
}
