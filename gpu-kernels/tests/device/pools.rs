//! Memory is bounded, used again, and what has no room waits.

use std::thread;

use gpu_kernels::cuda::{DevicePool, PinnedPool};
use gpu_kernels::preprocess::Element;

use super::*;

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
    // Another size has room only when kept blocks go.
    let other = pool.take(2 << 20).unwrap().unwrap();
    let (used, kept) = pool.held();
    assert!(used == 3 << 20 && used + kept <= 4 << 20, "{used} {kept}");
    drop((again, other));
    // What alone is larger than the bound is had alone, and is not kept.
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
