//! `weir-rig`: the command line of the rig.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The same allocator as the appliance's, so that the limit is comparable.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Drives a built `weir` from outside: camera frames, load, the in-process limit, benches.
#[derive(Parser)]
#[command(name = "weir-rig", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write camera frames, rendered here, as JPEG files.
    Frames(hw_tests::frames::Args),
    /// Post images to a server and measure latency and throughput.
    Load(hw_tests::load::Args),
    /// Decode, preprocess and infer in-process on all cores, without HTTP.
    Limit(hw_tests::limit::Args),
    /// Measure the built daemon against its targets.
    Bench(hw_tests::bench::Args),
    /// Check and measure everything that runs on this machine's NVIDIA GPU.
    Gpu(hw_tests::gpu::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Frames(args) => args.run(),
        Command::Load(args) => args.run(),
        Command::Limit(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Gpu(args) => args.run(),
    };
    done.unwrap_or_else(|error| {
        eprintln!("weir-rig: {error:#}");
        ExitCode::FAILURE
    })
}
