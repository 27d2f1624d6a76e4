//! A GPU that fails loses no accepted job, and recovers.

use super::*;

/// Enough pictures for many batches.
fn many(model: &Model) -> Vec<Bytes> {
    let golden = model.bundle.golden_cases().unwrap();
    golden.iter().cycle().take(60).map(|case| Bytes::from(case.bytes.clone())).collect()
}

fn check(model: &Model, answers: Vec<Answer<LaneReply>>) {
    let golden = model.bundle.golden_cases().unwrap();
    for (answer, case) in answers.into_iter().zip(golden.iter().cycle()) {
        let (classified, _) = answer.blocking_recv().unwrap().unwrap();
        case.judge(&model.bundle.manifest().labels, &classified.scores).unwrap();
    }
}

fn until(what: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !what() {
        assert!(Instant::now() < end, "the condition is not reached");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn nothing_is_left(driver: &SimulatedDriver, gpus: &[u32]) {
    for &gpu in gpus {
        assert_eq!((driver.blocks(gpu), driver.users(gpu)), (0, 0), "GPU {gpu}");
    }
    assert_eq!(driver.violations(), 0);
}

#[test]
fn the_other_gpu_computes_what_a_lost_one_had_and_the_lost_one_comes_back() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let (lanes, seen) = start(&model, settings(driver, None, &[4, 5]), None);
    // An uncorrectable memory error, while a kernel runs.
    driver.fail(4, "kernel", 0, 214, true);
    let pictures = many(&model);
    check(&model, submit(&lanes, &pictures));
    until(|| lanes.alive() == 2 && !seen.failures.lock().is_empty());
    let failures = seen.failures.lock().clone();
    assert!(failures.len() == 1 && failures[0].0 == "lost" && failures[0].1 > 0, "{failures:?}");
    let before = driver.images(4);
    until(|| {
        check(&model, submit(&lanes, &pictures[..8]));
        driver.images(4) > before
    });
    lanes.stop();
    drop(lanes);
    nothing_is_left(driver, &[4, 5]);
}

#[test]
fn the_cpu_stands_in_for_the_only_gpu_until_it_is_back() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let (lanes, seen) = start(&model, settings(driver, None, &[6]), Some(model.fallback()));
    driver.fail(6, "cuLaunchKernel", 2, 719, true);
    // It does not recover at once.
    for _ in 0..3 {
        driver.fail(6, "cuDevicePrimaryCtxReset", 0, 999, false);
    }
    let pictures = many(&model);
    check(&model, submit(&lanes, &pictures));
    until(|| seen.failures.lock().len() == 1);
    until(|| lanes.alive() == 1 && lanes.fallback_workers() == 0);
    check(&model, submit(&lanes, &pictures));
    lanes.stop();
    drop(lanes);
    nothing_is_left(driver, &[6]);
}

#[test]
fn out_of_memory_costs_no_answer_and_no_device() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let (lanes, seen) = start(&model, settings(driver, None, &[7]), None);
    // Other processes use all free memory: the lane continues with what it has.
    driver.set_memory(7, 1);
    check(&model, submit(&lanes, &many(&model)));
    assert!(seen.failures.lock().is_empty(), "{:?}", seen.failures.lock());
    lanes.stop();
    drop(lanes);
    nothing_is_left(driver, &[7]);
}

#[test]
fn without_memory_from_the_start_the_cpu_stands_in_until_there_is_some() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    driver.set_memory(12, 1 << 10);
    let (lanes, _) = start(&model, settings(driver, None, &[12]), Some(model.fallback()));
    check(&model, submit(&lanes, &many(&model)));
    until(|| lanes.fallback_workers() == 2);
    assert_eq!(lanes.alive(), 0);
    driver.set_memory(12, 1 << 30);
    until(|| lanes.alive() == 1 && lanes.fallback_workers() == 0);
    check(&model, submit(&lanes, &many(&model)));
    lanes.stop();
    drop(lanes);
    nothing_is_left(driver, &[12]);
}

#[test]
fn images_at_which_nvjpeg_hangs_are_decoded_by_the_cpu_and_the_lane_goes_on() {
    let driver = simulated_driver();
    let nvjpeg = nvjpeg::Simulated::new();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let mut settings = settings(driver, Some(&nvjpeg), &[13]);
    let stalls = Stalls::new(Duration::from_secs(2), 4);
    settings.decode.stalls = Arc::clone(&stalls);
    let (lanes, seen) = start(&model, settings, None);
    // The same picture with a comment in its header.
    let hanging = |image: &Bytes| {
        let length = u16::try_from(nvjpeg::HANGS.len() + 2).unwrap().to_be_bytes();
        Bytes::from([&image[..2], &[0xff, 0xfe], &length, nvjpeg::HANGS, &image[2..]].concat())
    };
    let pictures: Vec<Bytes> = many(&model);
    // Often enough for each of nvJPEG's threads to get some.
    for _ in 0..20 {
        let images: Vec<Bytes> = pictures.iter().map(hanging).collect();
        check(&model, submit(&lanes, &images));
        check(&model, submit(&lanes, &pictures));
        if stalls.stuck() == 2 {
            break;
        }
    }
    assert_eq!((stalls.stuck(), stalls.is_exhausted()), (2, false));
    assert_eq!((seen.failures.lock().len(), seen.restarted.load(Ordering::SeqCst)), (0, 0));
    nvjpeg::LET_GO.store(true, Ordering::Release);
    until(|| stalls.stuck() == 0);
    check(&model, submit(&lanes, &pictures));
    lanes.stop();
    drop(lanes);
    nothing_is_left(driver, &[13]);
    nvjpeg.check();
}

#[test]
fn nvjpeg_that_fails_leaves_its_images_to_the_cpu() {
    let driver = simulated_driver();
    let nvjpeg = nvjpeg::Simulated::new();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let (lanes, seen) = start(&model, settings(driver, Some(&nvjpeg), &[8]), None);
    let pictures = many(&model);
    // "Bad JPEG", "execution failed", "out of memory": while the GPU still works, any error is about these images.
    for code in [3, 6, 5] {
        nvjpeg.fail("nvjpegDecodeBatched", 1, code);
        check(&model, submit(&lanes, &pictures));
    }
    assert!(seen.failures.lock().is_empty(), "{:?}", seen.failures.lock());
    lanes.stop();
    drop(lanes);
    nvjpeg.check();
    nothing_is_left(driver, &[8]);
}

#[test]
fn a_model_that_computes_something_else_on_the_gpu_does_not_serve() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    // The bundle's cases have the labels of another model.
    let folder = tempfile::tempdir().unwrap();
    for file in ["LICENSE", "labels.txt", "model.int8.onnx", "model.fp16.onnx"] {
        std::fs::copy(model.bundle.dir().join(file), folder.path().join(file)).unwrap();
    }
    std::fs::create_dir(folder.path().join("golden")).unwrap();
    for case in model.bundle.golden_cases().unwrap() {
        std::fs::write(folder.path().join(&case.file), &case.bytes).unwrap();
    }
    let manifest = std::fs::read_to_string(model.bundle.dir().join("bundle.toml")).unwrap();
    let manifest = manifest.replacen("label = \"anemone_fish\"", "label = \"tench\"", 1);
    std::fs::write(folder.path().join("bundle.toml"), manifest).unwrap();
    let wrong = Arc::new(Bundle::open(folder.path()).unwrap());
    let settings = Arc::new(settings(driver, None, &[10]));
    let factory = gpu_factory(&model.runtime, &wrong, &model.file, &settings);
    let lanes = LaneSettings::new(1, 10);
    let seen = Arc::new(Seen::default());
    let error = Lanes::start_batches(&lanes, Vec::new(), &factory, Some(model.fallback()), seen);
    let error = error.err().unwrap().to_string();
    assert!(error.contains("golden/anemone_fish.jpg") && error.contains("tench"), "{error}");
    nothing_is_left(driver, &[10]);
}

#[test]
fn an_idle_lane_lets_go_of_a_gpu_that_another_found_lost() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let (busy, _) = start(&model, settings(driver, None, &[11]), Some(model.fallback()));
    let (idle, seen) = start(&model, settings(driver, None, &[11]), Some(model.fallback()));
    driver.fail(11, "cuLaunchKernel", 0, 719, true);
    let pictures = many(&model);
    check(&model, submit(&busy, &pictures[..4]));
    until(|| busy.alive() == 1 && idle.alive() == 1 && seen.restarted.load(Ordering::SeqCst) == 1);
    check(&model, submit(&busy, &pictures));
    check(&model, submit(&idle, &pictures));
    for lanes in [busy, idle] {
        lanes.stop();
    }
    nothing_is_left(driver, &[11]);
}

#[test]
fn without_nvjpeg_the_cpu_decodes() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let mut settings = settings(driver, None, &[9]);
    settings.decode.nvjpeg = true;
    let (lanes, _) = start(&model, settings, None);
    check(&model, submit(&lanes, &many(&model)));
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_that_names_it() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let settings = Arc::new(settings(driver, None, &[77]));
    let factory = gpu_factory(&model.runtime, &model.bundle, &model.file, &settings);
    let lanes = LaneSettings::new(1, 10);
    let error = Lanes::start_batches(&lanes, Vec::new(), &factory, None, Arc::new(Seen::default()));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("no GPU 77") && error.contains("Remedy"), "{error}");
}
