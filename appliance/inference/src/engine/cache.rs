//! TensorRT's engines on disk: one folder per GPU, driver, TensorRT version and model, since an engine is only valid for
//! these.

use std::path::PathBuf;

use crate::bundle::ModelFile;

/// File that marks a complete engine in its folder.
const MARKER: &str = "built";
/// Number of digits of the model's digest in a folder's name.
const DIGITS: usize = 16;

/// Where engines are stored, and what they depend on.
#[derive(Clone, Debug, Default)]
pub struct EngineCache {
    /// The root folder.
    pub root: PathBuf,
    /// The driver's name of each GPU, by number.
    pub gpus: Vec<String>,
    /// Version of the driver.
    pub driver: String,
    /// Version of TensorRT.
    pub tensorrt: String,
    /// Largest batch that an engine is built for.
    pub max_batch: usize,
}

impl EngineCache {
    /// The folder for a model's engine on a GPU.
    pub fn folder(&self, model: &ModelFile, gpu: u32) -> PathBuf {
        // One per GPU, also for GPUs of the same model: two concurrent builds would write the same files.
        let number = gpu;
        let gpu = usize::try_from(gpu).ok().and_then(|gpu| self.gpus.get(gpu));
        let digest = model.sha256.get(..DIGITS).unwrap_or(&model.sha256);
        let name = format!(
            "gpu{number}-{}-driver{}-tensorrt{}-batch{}-{digest}",
            gpu.map_or("gpu", String::as_str),
            self.driver,
            self.tensorrt,
            self.max_batch
        );
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' };
        self.root.join(name.chars().map(plain).collect::<String>())
    }

    /// Whether the engine is complete.
    pub fn is_built(&self, model: &ModelFile, gpu: u32) -> bool {
        self.folder(model, gpu).join(MARKER).is_file()
    }

    /// Removes an engine that can't be used.
    pub fn forget(&self, model: &ModelFile, gpu: u32) {
        let folder = self.folder(model, gpu);
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            tracing::warn!(%error, path = %folder.display(), "cannot remove the old TensorRT engine");
        }
    }

    /// Marks the engine as complete.
    pub fn set_built(&self, model: &ModelFile, gpu: u32) {
        let marker = self.folder(model, gpu).join(MARKER);
        if let Err(error) = std::fs::write(&marker, "") {
            tracing::warn!(%error, path = %marker.display(), "cannot mark the TensorRT engine as built; it will be rebuilt at the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::bundle::{InputType, OutputKind, Precision, Shape};

    fn model(sha256: &str) -> ModelFile {
        let shape = Shape { name: "x".into(), dims: vec![0, 3, 224, 224] };
        ModelFile {
            path: "model.onnx".into(),
            precision: Precision::Fp16,
            input_type: InputType::F16,
            input: shape.clone(),
            output: shape,
            output_kind: OutputKind::Probabilities,
            labels: 17,
            sha256: sha256.into(),
        }
    }

    #[test]
    fn an_engine_is_kept_for_what_it_was_built_with_and_for_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let cache = EngineCache {
            root: root.path().into(),
            gpus: vec!["NVIDIA H100 80GB HBM3".into(), "NVIDIA L4".into()],
            driver: "13.0".into(),
            tensorrt: "10.14.1".into(),
            max_batch: 64,
        };
        let ours = model(&"ab".repeat(32));
        let folder = cache.folder(&ours, 0);
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert_eq!(name, "gpu0-NVIDIA_H100_80GB_HBM3-driver13.0-tensorrt10.14.1-batch64-abababababababab");
        std::fs::create_dir_all(&folder).unwrap();
        assert!(!cache.is_built(&ours, 0));
        cache.set_built(&ours, 0);
        assert!(cache.is_built(&ours, 0) && !cache.is_built(&ours, 1));
        assert!(!cache.is_built(&model(&"cd".repeat(32)), 0));
        assert!(!EngineCache { driver: "13.1".into(), ..cache.clone() }.is_built(&ours, 0));
        assert!(!EngineCache { tensorrt: "10.15".into(), ..cache.clone() }.is_built(&ours, 0));
        cache.forget(&ours, 0);
        assert!(!cache.is_built(&ours, 0) && !folder.exists());
        // A folder that can't be written is only logged.
        EngineCache { root: "/proc/nowhere".into(), ..cache }.set_built(&ours, 0);
    }
}
