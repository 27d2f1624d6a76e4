//! Inference on one machine: model bundles, ONNX Runtime, and the lanes, which are threads that own a device each. Encoded images in, scores
//! out. There is no HTTP here, no cloud, and no configuration file; the daemon, the rig and the command line are its callers.

pub mod bundle;
pub mod bundle_check;
pub mod decode_memory;
pub mod engine;
pub mod lanes;
