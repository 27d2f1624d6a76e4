//! Where the library is looked for, and which device is chosen. Loading itself is tested on the whole daemon.

use std::path::Path;

use super::{DeviceKind, DeviceRequest, EngineError, Runtime, choose_device, library_candidates};

#[test]
fn a_configured_library_shuts_out_the_others() {
    let places = library_candidates(Some(Path::new("/opt/ort/libonnxruntime.so")));
    assert_eq!(places.len(), 1);
    assert_eq!(places[0].1, "engine.onnxruntime");
}

#[test]
fn a_configured_library_that_is_not_there_is_an_error_with_the_remedy() {
    let error = Runtime::load(Some(Path::new("/nowhere/libonnxruntime.so"))).unwrap_err();
    assert!(matches!(error, EngineError::LibraryMissing { .. }));
    assert!(error.to_string().contains("/nowhere/libonnxruntime.so (engine.onnxruntime)"), "{error}");
    assert!(error.to_string().contains("Remedy"), "{error}");
}

#[test]
fn auto_says_what_it_chose_and_a_gpu_is_never_replaced() {
    let ask = |kind| choose_device(&DeviceRequest { kind, ..DeviceRequest::default() });
    let auto = ask(DeviceKind::Auto).unwrap();
    assert_eq!(auto.kind, DeviceKind::Cpu);
    assert!(auto.reason.contains("auto"));
    assert_eq!(ask(DeviceKind::Cpu).unwrap().kind, DeviceKind::Cpu);
    for asked in [DeviceKind::Cuda, DeviceKind::Tensorrt] {
        assert!(matches!(ask(asked), Err(EngineError::DeviceUnavailable { .. })));
    }
}
