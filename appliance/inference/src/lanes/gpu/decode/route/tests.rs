//! Both decoders together are nearly as fast as the sum of them, whatever their speeds, and a single image takes the faster
//! one.

use super::*;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A decoder of `units` that each take `ns` per pixel; a GPU's unit takes up to `batch` images at once.
#[derive(Clone, Copy)]
struct Real {
    units: usize,
    ns: f64,
    batch: usize,
}

/// Images after which both speeds are known.
const LEARNED: usize = 400;

/// Decodes images of these sizes with up to `window` in flight; returns the pixels per nanosecond from when both speeds are
/// known until no more images arrive, and the number of images of each decoder.
fn simulate(cpu: Real, gpu: Real, guesses: (f64, f64), window: usize, sizes: &[u64]) -> (f64, [usize; 2]) {
    let real = [cpu, gpu];
    let lines = [
        DecoderQueue::new(cpu.units, cpu.batch, guesses.0),
        DecoderQueue::new(gpu.units, gpu.batch, guesses.1),
    ];
    let [cpu_line, gpu_line] = lines;
    let mut router = Router::new(cpu_line, gpu_line);
    let mut waiting: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
    let mut free = [cpu.units, gpu.units];
    /// Completion time of a unit, its decoder, its images, and its start time.
    type Running = Reverse<(u64, usize, Vec<u64>, u64)>;
    let mut running: BinaryHeap<Running> = BinaryHeap::new();
    let (mut now, mut next, mut in_hand, mut counts) = (0u64, 0, 0, [0; 2]);
    let (mut images, mut pixels, mut learned, mut last) = (0, 0, None, None);
    while next < sizes.len() || in_hand > 0 {
        while in_hand < window && next < sizes.len() {
            router.push(sizes[next], sizes[next], false);
            next += 1;
            in_hand += 1;
        }
        while let Some((route, size)) = router.next() {
            let line = usize::from(route == Route::Gpu);
            waiting[line].push(size);
            counts[line] += 1;
        }
        for line in 0..2 {
            while free[line] > 0 && !waiting[line].is_empty() {
                let count = waiting[line].len().min(real[line].batch);
                let batch: Vec<u64> = waiting[line].drain(..count).collect();
                let took = batch.iter().sum::<u64>() as f64 * real[line].ns;
                running.push(Reverse((now + took as u64, line, batch, now)));
                free[line] -= 1;
            }
        }
        let Some(Reverse((at, line, batch, since))) = running.pop() else { break };
        now = at;
        free[line] += 1;
        in_hand -= batch.len();
        images += batch.len();
        pixels += batch.iter().sum::<u64>();
        if images >= LEARNED {
            learned.get_or_insert((now, pixels));
        }
        if next == sizes.len() {
            last.get_or_insert((now, pixels));
        }
        let route = if line == 0 { Route::Cpu } else { Route::Gpu };
        router.done(route, batch.len(), batch.iter().sum(), Some(Duration::from_nanos(at - since)));
    }
    let ((since, before), (until, after)) = (learned.unwrap_or_default(), last.unwrap_or((now, pixels)));
    ((after - before) as f64 / (until - since).max(1) as f64, counts)
}

#[test]
fn together_they_are_nearly_as_fast_as_their_sum() {
    let sizes: Vec<u64> = (0..4000).map(|n| [307_200, 2_073_600, 8_294_400][n % 3]).collect();
    for (cpu_ns, cores) in [(2.0, 2), (2.0, 16), (10.0, 8)] {
        for (gpu_ns, units) in [(0.05, 2), (0.3, 2), (1.0, 1), (5.0, 2)] {
            for guesses in [(2.0, 0.5), (0.1, 50.0), (50.0, 0.1)] {
                let cpu = Real { units: cores, ns: cpu_ns, batch: 1 };
                let gpu = Real { units, ns: gpu_ns, batch: 16 };
                let (found, counts) = simulate(cpu, gpu, guesses, 192, &sizes);
                let share = found / (cores as f64 / cpu_ns + units as f64 / gpu_ns);
                let what = format!("{cores} cores of {cpu_ns}, {units} units of {gpu_ns}, {guesses:?}");
                assert!(share > 0.9, "{what}: {share:.3} of the sum, {counts:?}");
            }
        }
    }
}

#[test]
fn a_lone_image_takes_the_quicker_one_once_that_is_known() {
    for (cpu_ns, gpu_ns, expected) in [(2.0, 0.5, 1), (0.5, 2.0, 0)] {
        let cpu = Real { units: 4, ns: cpu_ns, batch: 1 };
        let gpu = Real { units: 2, ns: gpu_ns, batch: 16 };
        let sizes = vec![2_073_600; 300];
        let (_, counts) = simulate(cpu, gpu, (1.0, 1.0), 1, &sizes);
        assert!(counts[expected] > 290, "{counts:?}");
    }
}

#[test]
fn what_is_given_up_teaches_nothing() {
    let mut line = DecoderQueue::new(2, 1, 3.0);
    line.add(100);
    line.done(1, 100, None);
    line.done(0, 0, Some(Duration::from_secs(1)));
    assert_eq!((line.backlog, line.images, line.cost), (0, 0, 3.0));
}

#[test]
fn what_only_the_cpu_decodes_keeps_nothing_from_the_gpu() {
    let mut router = Router::new(DecoderQueue::new(1, 1, 2.0), DecoderQueue::new(1, 4, 0.5));
    for name in 0..10 {
        router.push(name, 100, true);
    }
    router.push(10, 100, false);
    let given: Vec<(Route, i32)> = std::iter::from_fn(|| router.next()).collect();
    assert_eq!(given, [(Route::Cpu, 0), (Route::Cpu, 1), (Route::Gpu, 10)]);
    router.done(Route::Cpu, 1, 100, Some(Duration::from_nanos(200)));
    assert_eq!(router.next(), Some((Route::Cpu, 2)));
    assert_eq!(router.next(), None);
}

#[test]
fn without_a_gpu_all_goes_to_the_cpu() {
    let mut router = Router::new(DecoderQueue::new(2, 1, 2.0), DecoderQueue::new(0, 16, 0.1));
    for name in 0..6 {
        router.push(name, 100, false);
    }
    let given = std::iter::from_fn(|| router.next()).filter(|(route, _)| *route == Route::Cpu).count();
    assert_eq!(given, 4);
}
