//! Camera frames: sizes, where a run's frames come from, and the `frames` command.

mod scene;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};

/// The sizes of frame that cameras at a weir send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Size {
    /// 640 x 480, about 100 KB.
    Vga,
    /// 1920 x 1080, about 560 KB.
    #[value(name = "1080p")]
    P1080,
    /// 3840 x 2160, about 1.5 MB.
    #[value(name = "4k")]
    Uhd,
}

impl Size {
    /// Every size, smallest first.
    pub const ALL: [Self; 3] = [Self::Vga, Self::P1080, Self::Uhd];

    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vga => "vga",
            Self::P1080 => "1080p",
            Self::Uhd => "4k",
        }
    }

    /// Width and height in pixels.
    #[must_use]
    pub fn pixels(self) -> (usize, usize) {
        match self {
            Self::Vga => (640, 480),
            Self::P1080 => (1920, 1080),
            Self::Uhd => (3840, 2160),
        }
    }

    /// About how many bytes a camera's JPEG of this size has.
    #[must_use]
    pub fn typical_bytes(self) -> usize {
        match self {
            Self::Vga => 100_000,
            Self::P1080 => 560_000,
            Self::Uhd => 1_500_000,
        }
    }

    /// How many different frames a bench cycles through: enough that no CPU cache holds them all.
    #[must_use]
    pub fn bench_count(self) -> usize {
        match self {
            Self::Vga => 64,
            Self::P1080 => 24,
            Self::Uhd => 16,
        }
    }
}

/// One size or all of them, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sizes {
    /// 640 x 480.
    Vga,
    /// 1920 x 1080.
    #[value(name = "1080p")]
    P1080,
    /// 3840 x 2160.
    #[value(name = "4k")]
    Uhd,
    /// Each of the three.
    All,
}

impl Sizes {
    /// The selected sizes.
    #[must_use]
    pub fn list(self) -> Vec<Size> {
        match self {
            Self::Vga => vec![Size::Vga],
            Self::P1080 => vec![Size::P1080],
            Self::Uhd => vec![Size::Uhd],
            Self::All => Size::ALL.to_vec(),
        }
    }
}

/// An encoded image and its name.
#[derive(Clone, Debug)]
pub struct Frame {
    /// File name, or size and number of a rendered frame.
    pub name: String,
    /// The file as it is posted.
    pub bytes: Vec<u8>,
}

/// Renders `count` frames of one size. The same size and number give the same bytes on every run.
///
/// # Errors
/// When the JPEG encoder fails.
pub fn render(size: Size, count: usize) -> anyhow::Result<Vec<Frame>> {
    (0..count)
        .map(|number| {
            let name = format!("{}-{number:03}.jpg", size.name());
            let bytes = scene::frame(size, number as u64).with_context(|| format!("encoding {name}"))?;
            Ok(Frame { name, bytes })
        })
        .collect()
}

/// Renders `count` pictures of any width and height in pixels, the same on every run.
///
/// # Errors
/// When the JPEG encoder fails.
pub fn render_pixels((width, height): (usize, usize), count: usize) -> anyhow::Result<Vec<Frame>> {
    (0..count)
        .map(|number| {
            let name = format!("{width}x{height}-{number:03}.jpg");
            let bytes = scene::picture((width, height), number as u64);
            Ok(Frame { bytes: bytes.with_context(|| format!("encoding {name}"))?, name })
        })
        .collect()
}

/// Reads every picture of a folder (by file extension), in the order of their names.
///
/// # Errors
/// When the folder or a file cannot be read, or the folder holds no picture.
pub fn read_dir(dir: &Path) -> anyhow::Result<Vec<Frame>> {
    const KINDS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"];
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading the folder {}", dir.display()))? {
        let path = entry?.path();
        let kind = path.extension().map(|kind| kind.to_string_lossy().to_ascii_lowercase());
        if path.is_file() && kind.is_some_and(|kind| KINDS.contains(&kind.as_str())) {
            paths.push(path);
        }
    }
    paths.sort();
    ensure!(!paths.is_empty(), "{} holds no picture ({})", dir.display(), KINDS.join(", "));
    paths.iter().map(|path| read_file(path)).collect()
}

/// Reads one picture.
///
/// # Errors
/// When the file cannot be read.
pub fn read_file(path: &Path) -> anyhow::Result<Frame> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Frame { name, bytes })
}

/// Length in bytes of the comment segment: marker, length, and 32 hexadecimal digits.
pub const TAG_LEN: usize = 4 + 32;

/// Why a file cannot be tagged.
#[derive(Debug, PartialEq, Eq)]
pub enum TagError {
    /// The file does not begin with a JPEG's start-of-image marker.
    NotJpeg,
}

impl std::fmt::Display for TagError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not a JPEG: only a JPEG can be made unique (use --repeat for other kinds)")
    }
}

impl std::error::Error for TagError {}

/// The COM segment (marker FF FE) with `run` and `counter` in hexadecimal.
#[must_use]
pub fn tag_segment(run: u64, counter: u64) -> [u8; TAG_LEN] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut segment = [0; TAG_LEN];
    // The length counts itself, two bytes, but not the marker.
    segment[..4].copy_from_slice(&[0xff, 0xfe, 0, (TAG_LEN - 2) as u8]);
    for (place, digit) in segment[4..].iter_mut().enumerate() {
        let (value, place) = if place < 16 { (run, place) } else { (counter, place - 16) };
        *digit = DIGITS[(value >> (60 - 4 * place)) as usize & 0xf];
    }
    segment
}

/// A copy of `jpeg` with the segment inserted after its start-of-image marker.
///
/// # Errors
/// `TagError::NotJpeg` when the file is not a JPEG.
pub fn with_tag(jpeg: &[u8], run: u64, counter: u64) -> Result<Vec<u8>, TagError> {
    let Some((start @ [0xff, 0xd8], rest)) = jpeg.split_first_chunk() else {
        return Err(TagError::NotJpeg);
    };
    Ok([start, tag_segment(run, counter).as_slice(), rest].concat())
}

/// `weir-rig frames`: write rendered frames as files.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The output folder; created if it does not exist.
    #[arg(long)]
    out: PathBuf,
    /// Which size of frame.
    #[arg(long, value_enum, default_value = "all")]
    size: Sizes,
    /// How many frames of each size.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
}

impl Args {
    /// Renders and writes the frames.
    ///
    /// # Errors
    /// When the folder or a file cannot be written.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        std::fs::create_dir_all(&self.out).with_context(|| format!("making {}", self.out.display()))?;
        let mut out = std::io::stdout().lock();
        for size in self.size.list() {
            let mut bytes = 0;
            for frame in render(size, usize::from(self.count))? {
                let path = self.out.join(&frame.name);
                std::fs::write(&path, &frame.bytes).with_context(|| format!("writing {}", path.display()))?;
                bytes += frame.bytes.len();
            }
            let (width, height) = size.pixels();
            let mean = bytes / usize::from(self.count) / 1000;
            writeln!(out, "{} frames of {width} x {height}, {mean} KB on average", self.count)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
