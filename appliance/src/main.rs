//! The `weir` command: parses the command line, reads the configuration, and hands over to the library.

use std::process::ExitCode;

use clap::Parser;

/// Many small allocations of all threads: mimalloc keeps both their cost and the resident memory down.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match weir::cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir: {error:#}");
            ExitCode::FAILURE
        }
    }
}
