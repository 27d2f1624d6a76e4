//! Startup with GPUs: NVIDIA libraries that are missing, damaged, of other versions, or simulated.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::models::{Registry, picture, start, until_serving};
use support::{Daemon, assert_says, failure, serve, weir};
use test_services::gpu::compile;

#[test]
fn a_configured_gpu_is_never_replaced_silently() {
    let data = tempfile::tempdir().unwrap();
    for device in ["cuda", "tensorrt"] {
        let refuse = || {
            let began = Instant::now();
            let text = failure(serve(data.path()).env("WEIR__ENGINE__DEVICE", device));
            assert_says(&text, &[device, "Remedy", "engine.device"]);
            began.elapsed()
        };
        // The quickest of a few: other tests run beside this one.
        let quickest = (0..5).map(|_| refuse()).min().unwrap();
        assert!(quickest < Duration::from_secs(10), "{quickest:?}");
    }
}

/// A folder with an invalid driver library.
fn doctored_driver(content: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libcuda.so.1"), content).unwrap();
    folder
}

#[test]
fn a_driver_that_does_not_load_is_named_if_a_gpu_is_configured() {
    for content in [&b""[..], b"no library", b"\x7fELF\x02\x01\x01"] {
        let folder = doctored_driver(content);
        let data = tempfile::tempdir().unwrap();
        let mut command = serve(data.path());
        command.env("WEIR__ENGINE__DEVICE", "cuda").env("LD_LIBRARY_PATH", folder.path());
        assert_says(&failure(&mut command), &["libcuda.so.1", "can't be loaded", "driver", "Remedy"]);
    }
}

#[test]
fn with_a_damaged_driver_auto_serves_on_the_cpu_with_a_reason() {
    let folder = doctored_driver(b"no library");
    let path = folder.path().display().to_string();
    let daemon = Daemon::start(&[("LD_LIBRARY_PATH", &path), ("WEIR__ENGINE__DEVICE", "auto")]);
    let health = daemon.get_as_operator("/health").text();
    assert!(health.contains("libcuda.so.1") && health.contains("can't be loaded"), "{health}");
    assert!(health.contains("\"cpu\""), "{health}");
}

#[test]
fn doctor_lists_what_a_gpu_needs_and_what_installs_it() {
    let folder = doctored_driver(b"no library");
    let data = tempfile::tempdir().unwrap();
    let mut doctor = weir();
    doctor.args(["doctor", "--data-dir"]).arg(data.path());
    doctor.env("WEIR__HTTP__LISTEN", "127.0.0.1:0").env("LD_LIBRARY_PATH", folder.path());
    let output = doctor.env("WEIR__ENGINE__DEVICE", "cuda").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success());
    assert_says(&text, &["libcuda.so.1 can't be loaded", "install the NVIDIA driver"]);
    assert_says(
        &text,
        &["libnvjpeg.so.13", "pip install nvidia-nvjpeg", "libnvinfer.so.10", "libcudnn.so.9"],
    );
    let output = doctor.env("WEIR__ENGINE__DEVICE", "cpu").output().unwrap();
    assert!(!String::from_utf8(output.stdout).unwrap().contains("gpu"));
}

/// A folder with the simulated driver and these files: name and content, or a library without functions.
fn with_driver(files: &[(&str, Option<&[u8]>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    compile("cuda.c", &folder.path().join("libcuda.so.1"));
    for (name, content) in files {
        let path = folder.path().join(name);
        match content {
            Some(content) => std::fs::write(path, content).unwrap(),
            None => compile("empty.c", &path),
        }
    }
    folder
}

/// Libraries that ONNX Runtime's CUDA provider needs.
const NEEDED: [&str; 5] =
    ["libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcudnn.so.9", "libcurand.so.10"];
const PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// The CPU build of ONNX Runtime that the tests use.
fn cpu_runtime() -> PathBuf {
    PathBuf::from(std::env::var_os("ORT_DYLIB_PATH").expect("ORT_DYLIB_PATH names libonnxruntime.so"))
}

/// The error of a daemon that must use the GPU with these libraries.
fn refusal(folder: &Path, device: &str) -> String {
    let data = tempfile::tempdir().unwrap();
    let folders = folder.display().to_string();
    let mut command = serve(data.path());
    command.env("WEIR__ENGINE__DEVICE", device).env("WEIR__ENGINE__LIBRARY_FOLDERS", folders);
    failure(&mut command)
}

/// `/health` of a daemon that may use the GPU.
fn health(folder: &Path) -> String {
    let folders = folder.display().to_string();
    let daemon =
        Daemon::start(&[("WEIR__ENGINE__LIBRARY_FOLDERS", &folders), ("WEIR__ENGINE__DEVICE", "auto")]);
    let health = daemon.get_as_operator("/health").text();
    assert!(health.contains("\"kind\":\"cpu\""), "{health}");
    health
}

#[test]
fn with_a_gpu_but_no_provider_the_package_is_named() {
    let folder = with_driver(&[]);
    let said = ["Simulated GPU 0", PROVIDER, "onnxruntime-gpu", "engine.library_folders"];
    assert_says(&refusal(folder.path(), "cuda"), &said);
    assert_says(&health(folder.path()), &["auto: there is Simulated GPU 0", PROVIDER]);
}

#[test]
fn libraries_that_are_missing_are_named_with_what_installs_them() {
    let folder = with_driver(&[(PROVIDER, None), ("libcudart.so.13", None)]);
    std::fs::copy(cpu_runtime(), folder.path().join("libonnxruntime.so.1.31.1")).unwrap();
    let said = ["libcublas.so.13", "libcudnn.so.9", "are missing", "pip install nvidia-cudnn-cu13"];
    assert_says(&refusal(folder.path(), "cuda"), &said);
    assert_says(&health(folder.path()), &said[..3]);
    let tensorrt = refusal(folder.path(), "tensorrt");
    assert_says(&tensorrt, &["libnvinfer.so.10", "libonnxruntime_providers_tensorrt.so"]);
}

#[test]
fn a_library_that_does_not_load_is_named() {
    let mut files: Vec<(&str, Option<&[u8]>)> = NEEDED.map(|name| (name, None)).to_vec();
    files.push((PROVIDER, None));
    files[3].1 = Some(b"\x7fELF\x02\x01\x01 cut off");
    let folder = with_driver(&files);
    std::fs::copy(cpu_runtime(), folder.path().join("libonnxruntime.so.1.31.1")).unwrap();
    let said = ["libcudnn.so.9", "can't be loaded"];
    assert_says(&refusal(folder.path(), "cuda"), &[said[0], said[1], "Remedy"]);
    assert_says(&health(folder.path()), &said);
}

#[test]
fn an_unusable_provider_is_an_error_and_not_a_silent_fallback_to_the_cpu() {
    // All libraries exist, but this ONNX Runtime was built without CUDA; then the provider itself is damaged.
    let provider: [Option<&[u8]>; 2] = [None, Some(b"no library")];
    for content in provider {
        let mut files: Vec<(&str, Option<&[u8]>)> = NEEDED.map(|name| (name, None)).to_vec();
        files.push((PROVIDER, content));
        let folder = with_driver(&files);
        std::fs::copy(cpu_runtime(), folder.path().join("libonnxruntime.so")).unwrap();
        let said = ["Simulated GPU 0", "cuda provider can't be used"];
        assert_says(&refusal(folder.path(), "cuda"), &[said[0], said[1], "Remedy"]);
        assert_says(&health(folder.path()), &said);
    }
}

#[test]
fn a_plain_model_is_rolled_out_with_the_library_of_the_library_folders() {
    let mut files: Vec<(&str, Option<&[u8]>)> = NEEDED.map(|name| (name, None)).to_vec();
    files.push((PROVIDER, None));
    let folder = with_driver(&files);
    std::fs::copy(cpu_runtime(), folder.path().join("libonnxruntime.so.1.31.1")).unwrap();
    let registry = Registry::new();
    let version = registry.version("fish", "1");
    std::fs::create_dir_all(&version).unwrap();
    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("inference/testdata/models/colours.onnx");
    std::fs::copy(graph, version.join("model.onnx")).unwrap();
    std::fs::write(version.join("MLmodel"), "flavors:\n  onnx:\n    data: model.onnx\n").unwrap();
    let given = "labels = [\"red\", \"green\", \"blue\"]\n\n[preprocess]\nresize = 8\ncrop = 8\nmean = 127\nstd = 128\n";
    std::fs::write(version.join("weir.toml"), given).unwrap();
    registry.alias("fish", "champion", "1");
    let folders = folder.path().display().to_string();
    // The library can be found only in these folders.
    let more = [
        ("WEIR__ENGINE__LIBRARY_FOLDERS", &*folders),
        ("WEIR__ENGINE__DEVICE", "auto"),
        ("ORT_DYLIB_PATH", ""),
    ];
    let env = registry.env("fish@champion");
    let daemon = start(&env, &more);
    until_serving(&daemon, "fish", "fish/1");
    let seen = daemon.post("/predict", &[], &picture([10, 10, 220], 1)).json();
    assert_eq!(seen["species"], "blue");
    // The commands find the same library, whichever device is configured.
    for device in ["auto", "cpu", "cuda"] {
        let data = tempfile::tempdir().unwrap();
        let succeeds = |arguments: &[&str]| {
            let mut command = weir();
            command.args(arguments).envs(env.iter().map(|(name, value)| (name, value))).envs(more);
            command.env("WEIR__ENGINE__DEVICE", device).env("WEIR__DATA_DIR", data.path());
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{device}: {arguments:?}: {said}");
        };
        succeeds(&["models", "pull", "fish@champion"]);
        let bundles = std::fs::read_dir(data.path().join("models/bundles")).unwrap();
        let bundle = bundles.map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
        succeeds(&["bundle", "check", bundle.to_str().unwrap()]);
    }
}

#[test]
fn gpus_that_are_not_there_or_too_old_are_named() {
    let folder = with_driver(&[]);
    let data = tempfile::tempdir().unwrap();
    let folders = folder.path().display().to_string();
    let mut command = serve(data.path());
    command.env("WEIR__ENGINE__DEVICE", "cuda").env("WEIR__ENGINE__LIBRARY_FOLDERS", &folders);
    let text = failure(command.env("WEIR__ENGINE__GPUS", "5"));
    assert_says(&text, &["engine.gpus names GPU 5", "0: Simulated GPU 0", "1: Simulated GPU 1"]);
    let text = failure(command.env("WEIR__ENGINE__GPUS", "1,1"));
    assert_says(&text, &["engine.gpus", "1 stands there twice"]);
    let text = failure(command.env_remove("WEIR__ENGINE__GPUS").env("WEIR_SIMULATED_CAPABILITY", "6"));
    assert_says(&text, &["compute capability 7.5", "Turing"]);
    let text = failure(command.env_remove("WEIR_SIMULATED_CAPABILITY").env("WEIR__ENGINE__MAX_BATCH", "0"));
    assert_says(&text, &["engine.max_batch", "0 is not between 1 and 1024"]);
    let text = failure(command.env_remove("WEIR__ENGINE__MAX_BATCH").env("WEIR__ENGINE__MAX_DELAY", "2s"));
    assert_says(&text, &["engine.max_delay", "2s is more than a second"]);
}
