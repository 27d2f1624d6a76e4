//! The limit: decode, preprocess and infer in this process on every core, without HTTP, and the `limit` command.

mod measure;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

pub use measure::{Engine, Limit, Plan};

use crate::frames::{self, Frame, Sizes};
use crate::load::counted_seconds;

/// `weir-rig limit`: what the machine can do without a server around it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Rendered camera frames of this size.
    #[arg(long, value_enum, default_value = "all", conflicts_with = "images")]
    frames: Sizes,
    /// The pictures of this folder.
    #[arg(long)]
    images: Option<PathBuf>,
    /// The model bundle; where `weir` looks for its default unless given.
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// How many threads, each with its own decoder and session; one a core unless given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// How many seconds are counted, for each size.
    #[arg(long, default_value_t = 5.0, value_parser = counted_seconds)]
    duration: f64,
}

impl Args {
    /// Measures and prints a table.
    ///
    /// # Errors
    /// When the bundle or ONNX Runtime does not load, or an image cannot be classified.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let sets: Vec<(String, Vec<Frame>)> = match &self.images {
            Some(dir) => vec![(dir.display().to_string(), frames::read_dir(dir)?)],
            None => {
                let rendered = self.frames.list().into_iter().map(|size| {
                    anyhow::Ok((size.name().to_owned(), frames::render(size, size.bench_count())?))
                });
                rendered.collect::<Result<_, _>>()?
            }
        };
        let engine = Engine::load(self.bundle.as_deref())?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let plan = Plan {
            threads: self.threads.map_or(cores, usize::from),
            warmup: Duration::from_millis(500),
            duration: Duration::from_secs_f64(self.duration),
        };
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["images", "images/s", "CPU ms", "decode ms", "preprocess ms", "infer ms"]);
        for (name, frames) in sets {
            let limit = engine.measure(&frames, &plan)?;
            let ms = [limit.cpu_ms, limit.decode_ms, limit.preprocess_ms, limit.infer_ms];
            let numbers = ms.map(|ms| format!("{ms:.2}"));
            table.add_row([name, format!("{:.1}", limit.images_per_s)].into_iter().chain(numbers));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(std::io::stdout(), "{}, {} threads\n{table}", engine.describe(), plan.threads)?;
        Ok(ExitCode::SUCCESS)
    }
}
