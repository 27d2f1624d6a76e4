//! Inference on one machine: model bundles, ONNX Runtime, and the lanes (threads that each own a device). Encoded images in,
//! scores out. No HTTP, no cloud and no configuration files; used by the daemon, the test rig and the command line.

pub mod bundle;
pub mod bundle_check;
pub mod decode_memory;
pub mod engine;
pub mod lanes;
