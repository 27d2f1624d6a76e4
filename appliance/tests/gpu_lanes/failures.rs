//! A GPU that fails loses nothing that was accepted, and comes back.

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
        assert!(Instant::now() < end, "it does not come about");
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
    driver.fail(4, "kernel", 3, 214, true);
    let pictures = many(&model);
    check(&model, submit(&lanes, &pictures));
    until(|| lanes.alive() == 2);
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
    let (lanes, seen) = start(&model, settings(driver, None, &[6]), Some(model.stand_in()));
    driver.fail(6, "cuLaunchKernel", 2, 719, true);
    // It does not come back at once.
    for _ in 0..3 {
        driver.fail(6, "cuDevicePrimaryCtxReset", 0, 999, false);
    }
    let pictures = many(&model);
    check(&model, submit(&lanes, &pictures));
    assert_eq!(seen.failures.lock().len(), 1);
    until(|| lanes.alive() == 1 && lanes.standing_in() == 0);
    check(&model, submit(&lanes, &pictures));
    lanes.stop();
    drop(lanes);
    nothing_is_left(driver, &[6]);
}

#[test]
fn out_of_memory_costs_no_answer() {
    let driver = simulated_driver();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let (lanes, seen) = start(&model, settings(driver, None, &[7]), Some(model.stand_in()));
    driver.fail(7, "cuMemAlloc", 0, 2, false);
    let pictures = many(&model);
    check(&model, submit(&lanes, &pictures));
    until(|| seen.restarted.load(Ordering::SeqCst) == 1 && lanes.alive() == 1);
    assert_eq!(seen.failures.lock()[0].0, "out_of_memory");
    lanes.stop();
    drop(lanes);
    nothing_is_left(driver, &[7]);
}

#[test]
fn nvjpeg_that_fails_fails_the_lane_and_a_damaged_batch_does_not() {
    let driver = simulated_driver();
    let nvjpeg = nvjpeg::Simulated::new();
    let model = Model::open(DeviceTag::Cpu, Precision::Int8);
    let (lanes, seen) = start(&model, settings(driver, Some(&nvjpeg), &[8]), Some(model.stand_in()));
    let pictures = many(&model);
    // "Bad JPEG": the batch is tried one by one.
    nvjpeg.fail("nvjpegDecodeBatched", 1, 3);
    check(&model, submit(&lanes, &pictures));
    assert!(seen.failures.lock().is_empty(), "{:?}", seen.failures.lock());
    // "Execution failed".
    nvjpeg.fail("nvjpegDecodeBatched", 2, 6);
    until(|| {
        check(&model, submit(&lanes, &pictures));
        !seen.failures.lock().is_empty()
    });
    assert_eq!(seen.failures.lock()[0].0, "decoder");
    until(|| lanes.alive() == 1 && lanes.standing_in() == 0);
    lanes.stop();
    drop(lanes);
    nvjpeg.check();
    nothing_is_left(driver, &[8]);
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
