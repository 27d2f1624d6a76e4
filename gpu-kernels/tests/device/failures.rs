//! Behaviour when the GPU refuses calls, is out of memory or is lost; and the pools, whose memory is bounded and reused.

use std::thread;

use gpu_kernels::cuda::{DevicePool, GpuError};

use super::*;

#[test]
fn what_is_not_there_is_named() {
    let driver = simulated_driver();
    let error = Device::open(&driver.folders(), 99).unwrap_err();
    assert!(error.to_string().starts_with("there is no GPU 99"), "{error}");
}

#[test]
fn too_little_memory_is_an_error_and_leaves_nothing_behind() {
    let driver = simulated_driver();
    driver.set_memory(7, 1 << 20);
    let device = Device::open(&driver.folders(), 7).unwrap();
    let settings = BatchSettings {
        spec: spec(),
        element: Element::F32,
        max_batch: 256,
        score_bytes: 68,
        slots: 2,
        image_bytes: 1 << 20,
    };
    let error = Batches::new(&device, device.stream().unwrap(), settings).unwrap_err();
    assert!(error.is_out_of_memory() && !error.is_lost(), "{error}");
    assert!(error.to_string().contains("out of memory"), "{error}");
    assert_eq!(driver.blocks(7), 0);
}

#[test]
fn every_call_may_fail_and_nothing_is_left_behind() {
    const CALLS: [(&str, u32); 6] = [
        ("cuMemcpyHtoDAsync", 3),
        ("cuMemcpyDtoHAsync", 3),
        ("cuLaunchKernel", 3),
        ("cuEventRecord", 5),
        ("cuStreamWaitEvent", 3),
        ("cuEventSynchronize", 3),
    ];
    let driver = simulated_driver();
    for (code, sticky) in [(2, false), (719, true)] {
        for (call, calls) in CALLS {
            for after in 0..calls {
                let mut gpu = Gpu::open(8, Element::F32, 2, 2);
                driver.fail(8, call, after, code, sticky);
                let failed = (0..4).find_map(|round| one_batch(&mut gpu, round % 2).err());
                let error = failed.unwrap_or_else(|| panic!("{call} was not called {after} times"));
                assert_eq!(error.is_lost(), sticky, "{error}");
                if error.is_lost() {
                    gpu.device.lost();
                    // The GPU can't be opened while it has users.
                    let early = Device::open(&driver.folders(), 8);
                    assert!(matches!(early, Err(GpuError::Recovering { number: 8 })), "{early:?}");
                }
                driver.heal(8);
                drop(gpu);
                assert_eq!((driver.blocks(8), driver.users(8)), (0, 0), "{call}");
                let mut again = Gpu::open(8, Element::F32, 2, 2);
                one_batch(&mut again, 0).unwrap();
            }
        }
    }
    assert_eq!(driver.violations(), 0);
}

#[test]
fn memory_is_asked_for_twice_and_then_waited_for_while_others_have_some() {
    let driver = simulated_driver();
    for call in ["cuMemAlloc", "cuMemHostAlloc"] {
        for (code, sticky) in [(2, false), (719, true)] {
            let mut gpu = Gpu::open(11, Element::F32, 2, 2);
            driver.fail(11, call, 0, code, sticky);
            // Free blocks of other sizes may occupy what is missing.
            assert_eq!(one_batch(&mut gpu, 0).is_ok(), !sticky, "{call}");
            if sticky {
                gpu.device.lost();
            }
            drop(gpu);
            assert_eq!((driver.blocks(11), driver.users(11)), (0, 0), "{call}");
        }
    }
    let device = Device::open(&driver.folders(), 11).unwrap();
    let pool = DevicePool::new(&device, 8 << 20);
    for _ in 0..2 {
        driver.fail(11, "cuMemAlloc", 0, 2, false);
    }
    assert!(pool.take(1).unwrap_err().is_out_of_memory());
    let block = pool.take(1).unwrap().unwrap();
    for _ in 0..2 {
        driver.fail(11, "cuMemAlloc", 0, 2, false);
    }
    assert!(pool.take(1 << 20).unwrap().is_none());
    drop(block);
    assert!(pool.take(1 << 20).unwrap().is_some());
}

#[test]
fn a_kernel_that_fails_while_it_runs_shows_when_it_is_waited_for() {
    let mut gpu = Gpu::open(9, Element::F32, 2, 2);
    gpu.driver.fail(9, "kernel", 0, 700, true);
    let error = one_batch(&mut gpu, 0).unwrap_err();
    assert!(error.is_lost(), "{error}");
    gpu.device.lost();
    let driver = gpu.driver;
    drop(gpu);
    one_batch(&mut Gpu::open(9, Element::F32, 2, 2), 0).unwrap();
    assert_eq!(driver.violations(), 0);
}

fn one_batch(gpu: &mut Gpu, slot: usize) -> Result<(), GpuError> {
    let pixels = pixels(90, 70, 3);
    let staged = gpu.stager.stage(&image(90, 70, &pixels, Orientation::Upright), LONG)?;
    let uploaded = gpu.batches.upload(staged.expect("room"))?.expect("room");
    gpu.batches.preprocess(slot, vec![uploaded])?;
    gpu.batches.read_back(slot, 1)?;
    gpu.batches.collect(slot)?;
    Ok(())
}

#[test]
fn blocks_are_used_again_and_bounded() {
    let driver = simulated_driver();
    let device = Device::open(&driver.folders(), 4).unwrap();
    let pool = DevicePool::new(&device, 4 << 20);
    let blocks: Vec<_> = (0..4).map(|_| pool.take(1 << 20).unwrap().unwrap()).collect();
    let addresses: Vec<u64> = blocks.iter().map(|block| block.address()).collect();
    assert!(pool.take(1).unwrap().is_none());
    assert_eq!(pool.held(), (4 << 20, 0));
    drop(blocks);
    assert_eq!(pool.held(), (0, 4 << 20));
    let again = pool.take(700_000).unwrap().unwrap();
    assert!(addresses.contains(&again.address()));
    // Another size only has room after free blocks are released.
    let other = pool.take(2 << 20).unwrap().unwrap();
    let (used, kept) = pool.held();
    assert!(used == 3 << 20 && used + kept <= 4 << 20, "{used} {kept}");
    drop((again, other));
    // A block beyond the limit is only available alone, and is not kept.
    let giant = pool.take(9 << 20).unwrap().unwrap();
    assert!(pool.take(1).unwrap().is_none());
    drop(giant);
    assert!(pool.held().0 == 0 && pool.held().1 <= 4 << 20);
    drop((pool, device));
    assert_eq!(driver.blocks(4), 0);
}

#[test]
fn who_finds_no_room_waits_for_it() {
    let driver = simulated_driver();
    let device = Device::open(&driver.folders(), 5).unwrap();
    let pool = PinnedPool::new(&device, 1 << 20);
    let first = pool.take(1 << 20).unwrap().unwrap();
    assert!(pool.take_within(1, Duration::from_millis(30)).unwrap().is_none());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.take_within(1, LONG).unwrap().is_some());
        thread::sleep(Duration::from_millis(50));
        drop(first);
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn an_image_without_room_on_the_gpu_comes_back() {
    let mut gpu = Gpu::open(6, Element::F32, 4, 1);
    let side = 2048;
    let pixels = pixels(side, side, 1);
    let stage = |gpu: &Gpu| gpu.stager.stage(&image(side, side, &pixels, Orientation::Upright), LONG);
    let mut uploaded = Vec::new();
    let back = loop {
        match gpu.batches.upload(stage(&gpu).unwrap().unwrap()).unwrap() {
            Ok(image) => uploaded.push(image),
            Err(back) => break back,
        }
    };
    assert_eq!(back.size(), (side, side));
    gpu.batches.preprocess(0, uploaded).unwrap();
    gpu.batches.read_back(0, 2).unwrap();
    gpu.batches.collect(0).unwrap();
    assert!(gpu.batches.upload(back).unwrap().is_ok());
}
