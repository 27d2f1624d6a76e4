//! Renders underwater scenes as a camera records them: light from above, an overgrown floor, fish, drifting particles, sensor noise.
//!
//! The cost of decoding a JPEG depends on the origin of its bytes. The floor has the spectrum of natural scenes (amplitude
//! falls with frequency: Field, "Relations between the statistics of natural images and the response properties of
//! cortical cells", 1987), so most bytes are texture, as in a photograph, and not noise.

use fastrand::Rng;
use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

use super::Size;

/// Strength of each octave of texture, in levels of 0..=255.
const CONTRAST: f32 = 26.0;

/// The finest octave, in pixels.
const FINEST: usize = 3;

/// One fish: an ellipse with a tail, stripes and an eye. Lengths in pixels.
struct Fish {
    x: f32,
    y: f32,
    length: f32,
    height: f32,
    /// +1 swims right, -1 left.
    heading: f32,
    stripes: f32,
    colour: [f32; 3],
}

/// A drifting particle: a soft bright dot.
struct Particle {
    x: f32,
    y: f32,
    radius: f32,
    light: f32,
}

/// Renders an RGB8 picture, `width * height * 3` bytes, row by row without padding. `noise` is the
/// standard deviation of the sensor noise in levels of 0..=255. The same arguments give the same pixels.
fn render(width: usize, height: usize, seed: u64, noise: f32) -> Vec<u8> {
    let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (width as u64));
    let mut scene = light(width, height, &mut rng);
    grow_over(&mut scene, width, &mut rng);
    let scale = width as f32 / 640.0;
    for _ in 0..60 * 4 {
        draw_particle(&mut scene, width, &particle(width, height, scale, &mut rng));
    }
    for _ in 0..rng.usize(3..7) {
        draw_fish(&mut scene, width, &fish(width, height, &mut rng));
    }
    add_noise(&scene, width, noise, &mut rng)
}

/// Water: blue-green above, dark below, with slanted shafts of light.
fn light(width: usize, height: usize, rng: &mut Rng) -> Vec<[f32; 3]> {
    let top = [60.0 + 30.0 * rng.f32(), 140.0 + 30.0 * rng.f32(), 150.0 + 30.0 * rng.f32()];
    let bottom = [8.0, 38.0, 55.0];
    let phase = rng.f32() * 6.0;
    let slant = 0.2 + 0.4 * rng.f32();
    // The shafts depend on x and y only through their slanted sum, so that one row of sines serves all.
    let reach = width + (height as f32 * slant) as usize + 1;
    let shafts: Vec<f32> = (0..reach)
        .map(|x| {
            let along = x as f32 / width as f32;
            1.0 + 0.10 * (along * 23.0 + phase).sin() + 0.06 * (along * 57.0 - phase).sin()
        })
        .collect();
    let mut scene = Vec::with_capacity(width * height);
    for y in 0..height {
        let depth = y as f32 / height as f32;
        let shift = (y as f32 * slant) as usize;
        let water: [f32; 3] = std::array::from_fn(|c| top[c] + (bottom[c] - top[c]) * depth);
        scene.extend(shafts[shift..shift + width].iter().map(|shaft| water.map(|level| level * shaft)));
    }
    scene
}

/// Texture over everything, faint in the water above and strong on the floor below: octaves of smooth noise, each half
/// as wide as the one before and equally strong, down to what a lens resolves.
fn grow_over(scene: &mut [[f32; 3]], width: usize, rng: &mut Rng) {
    let height = scene.len() / width;
    let widest = width / 5;
    let mut cell = widest;
    while cell >= FINEST {
        let columns = width / cell + 2;
        let lattice: Vec<f32> = (0..columns * (height / cell + 2)).map(|_| rng.f32() * 2.0 - 1.0).collect();
        for (y, row) in scene.chunks_exact_mut(width).enumerate() {
            let (top, down) = (y / cell * columns, (y % cell) as f32 / cell as f32);
            let here = CONTRAST * (0.15 + 0.85 * (y as f32 / height as f32));
            // One vertical interpolation per lattice column, and one horizontal interpolation per pixel.
            let edge = |c: usize| lattice[top + c] + (lattice[top + columns + c] - lattice[top + c]) * down;
            for (c, pixels) in row.chunks_mut(cell).enumerate() {
                let (left, step) = (edge(c) * here, (edge(c + 1) - edge(c)) * here / cell as f32);
                for (x, pixel) in pixels.iter_mut().enumerate() {
                    let level = left + step * x as f32;
                    *pixel = [pixel[0] + level, pixel[1] + level * 0.9, pixel[2] + level * 0.7];
                }
            }
        }
        cell /= 2;
    }
}

fn particle(width: usize, height: usize, scale: f32, rng: &mut Rng) -> Particle {
    Particle {
        x: rng.f32() * width as f32,
        y: rng.f32() * height as f32,
        radius: (0.7 + 2.0 * rng.f32()) * scale,
        light: 15.0 + 45.0 * rng.f32(),
    }
}

fn fish(width: usize, height: usize, rng: &mut Rng) -> Fish {
    let length = width as f32 * (0.10 + 0.22 * rng.f32());
    Fish {
        x: rng.f32() * width as f32,
        y: (0.15 + 0.7 * rng.f32()) * height as f32,
        length,
        height: length * (0.28 + 0.25 * rng.f32()),
        heading: if rng.bool() { 1.0 } else { -1.0 },
        stripes: 4.0 + 8.0 * rng.f32(),
        colour: [90.0 + 140.0 * rng.f32(), 70.0 + 110.0 * rng.f32(), 50.0 + 90.0 * rng.f32()],
    }
}

/// Calls `paint` with every pixel of a box around a point and its offset from that point; what lies
/// outside of the picture is skipped.
fn in_box(
    scene: &mut [[f32; 3]],
    width: usize,
    centre: (f32, f32),
    half: (f32, f32),
    mut paint: impl FnMut(&mut [f32; 3], f32, f32),
) {
    let height = scene.len() / width;
    let span = |at: f32, half: f32, end: usize| {
        ((at - half).max(0.0) as usize).min(end)..((at + half + 1.0).max(0.0) as usize).min(end)
    };
    for y in span(centre.1, half.1, height) {
        for x in span(centre.0, half.0, width) {
            paint(&mut scene[y * width + x], x as f32 - centre.0, y as f32 - centre.1);
        }
    }
}

fn draw_particle(scene: &mut [[f32; 3]], width: usize, particle: &Particle) {
    let reach = particle.radius * 2.0;
    in_box(scene, width, (particle.x, particle.y), (reach, reach), |pixel, dx, dy| {
        let near = 1.0 - (dx * dx + dy * dy).sqrt() / reach;
        if near > 0.0 {
            *pixel = pixel.map(|level| level + near * particle.light);
        }
    });
}

fn draw_fish(scene: &mut [[f32; 3]], width: usize, fish: &Fish) {
    let half = (fish.length * 0.75, fish.height * 0.5);
    in_box(scene, width, (fish.x, fish.y), half, |pixel, dx, dy| {
        // Along the fish: 1 at the nose, -1 where the tail fin begins, -1.5 at its end.
        let along = dx * fish.heading / (fish.length * 0.5);
        let across = dy / (fish.height * 0.5);
        let body = along * along + across * across < 1.0;
        let tail = along < -0.8 && across.abs() < (-along - 0.75) * 1.3;
        if !body && !tail {
            return;
        }
        let stripe = if (along * fish.stripes).sin() > 0.4 { 0.55 } else { 1.0 };
        let shade = (1.0 - 0.45 * across) * stripe;
        let eye = (along - 0.72).powi(2) * 4.0 + (across + 0.15).powi(2) < 0.02;
        *pixel = if eye { [12.0; 3] } else { fish.colour.map(|level| level * shade) };
    });
}

/// Adds noise, mostly in brightness as after a camera's colour denoising, and rounds to bytes.
fn add_noise(scene: &[[f32; 3]], width: usize, noise: f32, rng: &mut Rng) -> Vec<u8> {
    let mut pixels = vec![0; scene.len() * 3];
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    let height = scene.len() / width;
    // One seed per row instead of one per thread: the pixels must not depend on the number of cores.
    let seeds: Vec<u64> = (0..height).map(|_| rng.u64(..)).collect();
    let rows = height.div_ceil(threads);
    std::thread::scope(|scope| {
        let parts = scene.chunks(rows * width).zip(pixels.chunks_mut(rows * width * 3));
        for ((scene, pixels), seeds) in parts.zip(seeds.chunks(rows)) {
            scope.spawn(move || {
                let lines = scene.chunks(width).zip(pixels.chunks_mut(width * 3));
                for ((scene, pixels), seed) in lines.zip(seeds) {
                    noisy_row(scene, pixels, noise, &mut Rng::with_seed(*seed));
                }
            });
        }
    });
    pixels
}

fn noisy_row(scene: &[[f32; 3]], pixels: &mut [u8], noise: f32, rng: &mut Rng) {
    // The sum of four uniform bytes is close enough to a normal distribution: mean 510, deviation 147.8.
    let strength = noise / 147.8;
    for (colour, pixel) in scene.iter().zip(pixels.chunks_exact_mut(3)) {
        let bytes = rng.u64(..).to_le_bytes();
        let sum: u32 = bytes[..4].iter().map(|byte| u32::from(*byte)).sum();
        let bright = (sum as f32 - 510.0) * strength;
        for channel in 0..3 {
            let tint = (f32::from(bytes[4 + channel]) - 127.5) * strength * 0.3;
            // `as` saturates, which is the clamp to 0..=255.
            pixel[channel] = (colour[channel] + bright + tint + 0.5) as u8;
        }
    }
}

/// Quality of the JPEG encoder and strength of the sensor noise, tuned together so that the files have
/// the sizes of `Size::typical_bytes`: small sensors are noisy and lightly compressed, 4K the reverse.
fn tuning(size: Size) -> (i32, f32) {
    match size {
        Size::Vga => (95, 1.8),
        Size::P1080 => (94, 1.8),
        Size::Uhd => (89, 1.8),
    }
}

/// Frame number `seed` of a size, encoded.
pub(super) fn frame(size: Size, seed: u64) -> turbojpeg::Result<Vec<u8>> {
    encode(size.pixels(), tuning(size), seed)
}

/// Picture number `seed` of any size, encoded as a VGA camera would.
pub(super) fn picture(pixels: (usize, usize), seed: u64) -> turbojpeg::Result<Vec<u8>> {
    encode(pixels, tuning(Size::Vga), seed)
}

fn encode(
    (width, height): (usize, usize),
    (quality, noise): (i32, f32),
    seed: u64,
) -> turbojpeg::Result<Vec<u8>> {
    let pixels = render(width, height, seed, noise);
    let mut encoder = Compressor::new()?;
    encoder.set_quality(quality)?;
    encoder.set_subsamp(Subsamp::Sub2x2)?;
    encoder.compress_to_vec(Image {
        pixels: &pixels,
        width,
        pitch: width * 3,
        height,
        format: PixelFormat::RGB,
    })
}
