//! `weir bundle check`: whether a bundle can serve, step by step, with a remedy where it cannot.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use gpu_kernels::DecodeLimits;
use inference::bundle::{Bundle, BundleError, DeviceTag, Variant};
use inference::bundle_check::{BundleCheck, CheckError};
use inference::engine::{Graph, Runtime};
use serde::Serialize;

use super::Common;
use crate::bootstrap::load_library;
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    #[command(subcommand)]
    command: BundleCommand,
}

#[derive(Debug, Subcommand)]
enum BundleCommand {
    /// Check everything that a bundle promises: digests, graphs, golden cases.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The bundle's folder.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Configuration file; ./weir.toml is read if it is there.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

/// One check.
#[derive(Debug, Serialize)]
struct Step {
    step: String,
    ok: bool,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Report {
    dir: PathBuf,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    steps: Vec<Step>,
}

impl Report {
    fn ok(&mut self, step: impl Into<String>, found: impl ToString) {
        self.steps.push(Step { step: step.into(), ok: true, found: found.to_string(), remedy: None });
    }

    fn wrong(&mut self, step: impl Into<String>, found: impl ToString, remedy: &'static str) {
        self.ok = false;
        self.steps.push(Step {
            step: step.into(),
            ok: false,
            found: found.to_string(),
            remedy: Some(remedy),
        });
    }
}

pub(super) fn run(args: &BundleArgs) -> anyhow::Result<ExitCode> {
    let BundleCommand::Check(args) = &args.command;
    let common = Common { config: args.config.clone(), data_dir: None, bundle: None };
    let report = examine(&args.dir, &common.load(Vec::new())?.config);
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        print(&mut out, &report)?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(dir: &Path, config: &Config) -> Report {
    let mut report = Report { dir: dir.into(), ok: true, digest: None, steps: Vec::new() };
    let bundle = match Bundle::open(dir) {
        Ok(bundle) => bundle,
        Err(error) => {
            let (step, remedy) = about(&error);
            report.wrong(step, error, remedy);
            return report;
        }
    };
    let manifest = bundle.manifest();
    report.digest = Some(bundle.digest().into());
    report.ok("manifest", format!("{} {}, bundle.toml is valid", manifest.name, manifest.version));
    report.ok("labels", format!("{}, as in labels.txt", manifest.labels.len()));
    report.ok("digests", format!("{} files are as bundle.toml says", manifest.files().count()));
    let runtime = match load_library(config) {
        Ok(runtime) => runtime,
        Err(error) => {
            report.wrong("engine", error, "without it nothing can be loaded; see `weir doctor`");
            return report;
        }
    };
    let limits = config.image.limits(DecodeLimits::default().max_bytes);
    for variant in &manifest.variants {
        examine_graph(&mut report, &runtime, &bundle, variant);
        if variant.devices.contains(&DeviceTag::Cpu) {
            try_out(&mut report, &runtime, &bundle, variant, limits);
        }
    }
    if !manifest.variants.iter().any(|variant| variant.devices.contains(&DeviceTag::Cpu)) {
        report.ok(
            "golden cases",
            "not run: no variant is meant for the CPU, and this check has no other device",
        );
    } else if manifest.golden.is_empty() {
        report.ok("golden cases", "there are none, so built-in pictures were run: add some, nothing else notices a wrong preprocess");
    }
    report
}

/// The step that an error of opening belongs to, and its remedy.
fn about(error: &BundleError) -> (&'static str, &'static str) {
    match error {
        BundleError::Digest { .. } => {
            ("digests", "copy the bundle again, or write the new file's sha256 into bundle.toml")
        }
        BundleError::Read { file, .. } if file == "labels.txt" => {
            ("labels", "write the labels there, one a line")
        }
        BundleError::Read { .. } => {
            ("files", "name the folder that holds bundle.toml, with all files that it names")
        }
        BundleError::Invalid { .. } if error.to_string().contains("label") => {
            ("labels", "bundle.toml, labels.txt and the model's output must agree, in number and order")
        }
        _ => ("manifest", "correct bundle.toml; see docs/bundle.md"),
    }
}

fn examine_graph(report: &mut Report, runtime: &Runtime, bundle: &Bundle, variant: &Variant) {
    let manifest = bundle.manifest();
    let name = |what: &str| format!("{}: {what}", variant.file);
    let graph = match Graph::read(runtime, &bundle.dir().join(&variant.file)) {
        Ok(graph) => graph,
        Err(error) => {
            report.wrong(
                name("graph"),
                error,
                "export the model again, as ONNX with one input and one output",
            );
            return;
        }
    };
    let input = graph.input.differs("input", &manifest.input.name, &manifest.input.shape);
    let output = graph.output.differs("output", &manifest.output.name, &manifest.output.shape);
    match input.or(output) {
        Some(differs) => report.wrong(name("graph"), differs, "correct [input] and [output] in bundle.toml"),
        None => {
            let shapes = format!("{:?} -> {:?}", manifest.input.shape, manifest.output.shape);
            report
                .ok(name("graph"), format!("{} to {}, {shapes}", manifest.input.name, manifest.output.name));
        }
    }
}

fn try_out(report: &mut Report, runtime: &Runtime, bundle: &Bundle, variant: &Variant, limits: DecodeLimits) {
    let name = |what: &str| format!("{}: {what}", variant.file);
    let ready = bundle
        .variant(DeviceTag::Cpu, Some(variant.precision))
        .map_err(CheckError::from)
        .and_then(|model| BundleCheck::load(runtime, bundle, &model, limits));
    let mut check = match ready {
        Ok(check) => check,
        Err(error) => {
            report.wrong(
                name("load"),
                error,
                "export the model again; a blank image must come to scores between 0 and 1 that add up to 1",
            );
            return;
        }
    };
    let milliseconds = check.load_time.as_secs_f64() * 1e3;
    report.ok(name("load"), format!("loaded and warm in {milliseconds:.0} ms, {}", variant.precision));
    let cases = match bundle.golden_cases() {
        Ok(cases) => cases,
        Err(error) => return report.wrong("golden cases", error, "put the pictures back"),
    };
    for case in &cases {
        match check.run(bundle, case) {
            Ok((label, score)) => {
                let label = bundle.manifest().labels.get(label).map_or("", String::as_str);
                let due = case.expected.map_or_else(
                    || "valid scores, no answer is expected".to_owned(),
                    |expected| format!("at least {} is due", expected.min_score),
                );
                report.ok(name(&case.file), format!("{label} {score:.3}, {due}"));
            }
            Err(error) => report.wrong(
                name(&case.file),
                error,
                "look at [output] kind, [preprocess], the order of labels and this variant's weights; then at label and min_score",
            ),
        }
    }
}

fn print(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    for step in &report.steps {
        table.add_row([if step.ok { "OK" } else { "WRONG" }, &step.step, &step.found]);
        if let Some(remedy) = step.remedy {
            table.add_row(["", "", &format!("-> {remedy}")]);
        }
    }
    writeln!(out, "{table}")?;
    match report.ok {
        true => writeln!(out, "\n{} can serve", report.dir.display()),
        false => writeln!(out, "\n{} must not serve", report.dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fish/1")
    }

    #[test]
    fn the_default_bundle_passes_every_step() {
        let report = examine(&bundle(), &Config::default());
        assert!(report.ok, "{report:?}");
        let said = |step: &str| report.steps.iter().find(|s| s.step == step).map(|s| s.found.as_str());
        assert_eq!(said("labels"), Some("17, as in labels.txt"));
        assert!(said("model.int8.onnx: load").is_some_and(|found| found.contains("warm in")));
        assert!(said("model.fp16.onnx: graph").is_some_and(|found| found.contains("image to scores")));
        let golden = said("model.int8.onnx: golden/anemone_fish.jpg");
        assert!(golden.is_some_and(|found| found.starts_with("anemone_fish 0.9")), "{golden:?}");
    }

    #[test]
    fn what_is_wrong_is_shown_with_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let report = examine(folder.path(), &Config::default());
        let mut text = Vec::new();
        print(&mut text, &report).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(!report.ok && report.digest.is_none());
        assert!(
            text.contains("WRONG") && text.contains("-> name the folder that holds bundle.toml"),
            "{text}"
        );
        assert!(text.contains("must not serve"), "{text}");
    }
}
