//! Models as tables for a person.

use std::io::{Result, Write};

use comfy_table::{Table, presets};
use serde_json::Value;

/// Characters of a digest that tell bundles apart.
const SHORT: usize = 12;

pub(super) fn models(out: &mut impl Write, models: &[Value]) -> Result<()> {
    let mut table = table(["MODEL", "SERVING", "FOLLOWS", "PINNED", "STEP", "REMARK"]);
    for model in models {
        let step = match (text(&model["step"]), text(&model["candidate"])) {
            (step, candidate) if candidate != "-" => format!("{step} {candidate}"),
            (step, _) => step,
        };
        table.add_row([
            text(&model["model"]),
            serving(model),
            text(&model["follow"]),
            text(&model["pinned"]),
            step,
            text(&model["error"]),
        ]);
    }
    writeln!(out, "{table}")
}

/// The registry's version, with what the bundle calls itself.
fn serving(model: &Value) -> String {
    match (model["name"].as_str(), model["version"].as_str()) {
        (Some(name), Some(version)) if !name.is_empty() => {
            format!("{} ({name} {version})", text(&model["serving"]))
        }
        _ => text(&model["serving"]),
    }
}

pub(super) fn stored(out: &mut impl Write, stored: &[Value]) -> Result<()> {
    if stored.is_empty() {
        return Ok(());
    }
    let mut table = table(["ON DISK", "MODEL", "VERSIONS", "SIZE", "SINCE"]);
    for bundle in stored {
        let empty = Vec::new();
        let origins = bundle["origins"].as_array().unwrap_or(&empty).iter();
        let origins: Vec<String> =
            origins.map(|origin| format!("{}/{}", text(&origin["name"]), text(&origin["version"]))).collect();
        table.add_row([
            text(&bundle["digest"]).chars().take(SHORT).collect(),
            format!("{} {}", text(&bundle["model"]), text(&bundle["version"])),
            origins.join(", "),
            bytesize::ByteSize(bundle["bytes"].as_u64().unwrap_or(0)).to_string(),
            text(&bundle["admitted"]),
        ]);
    }
    writeln!(out, "\n{table}")
}

pub(super) fn model(out: &mut impl Write, model: &Value) -> Result<()> {
    let mut table = plain();
    for (title, key) in [
        ("model", "model"),
        ("serving", "serving"),
        ("previous", "previous"),
        ("follows", "follow"),
        ("pinned", "pinned"),
        ("step", "step"),
        ("candidate", "candidate"),
        ("labels", "labels"),
        ("precision", "precision"),
        ("digest", "digest"),
        ("last polled", "last_polled_at"),
        ("remark", "error"),
    ] {
        let value = if key == "serving" { serving(model) } else { text(&model[key]) };
        if value != "-" {
            table.add_row([title.to_owned(), value]);
        }
    }
    if let Value::Object(trial) = &model["trial"] {
        let seen: Vec<String> = trial.iter().map(|(key, value)| format!("{key} {value}")).collect();
        table.add_row(["trial".to_owned(), seen.join(", ")]);
    }
    for rejected in model["rejected"].as_array().into_iter().flatten() {
        let what = format!("{}: {}", text(&rejected["version"]), text(&rejected["reason"]));
        table.add_row(["rejected".to_owned(), what]);
    }
    writeln!(out, "{table}")
}

pub(super) fn versions(out: &mut impl Write, versions: &[Value]) -> Result<()> {
    let mut table = table(["VERSION", "ALIASES", "REGISTERED", "BOXES"]);
    for version in versions {
        let aliases = version["aliases"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
        let nodes = version["nodes"].as_object().into_iter().flatten();
        let nodes: Vec<String> = nodes.map(|(node, state)| format!("{node}: {}", text(state))).collect();
        table.add_row([
            text(&version["version"]),
            aliases.join(", "),
            text(&version["created"]),
            nodes.join("\n"),
        ]);
    }
    writeln!(out, "\n{table}")
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = plain();
    table.set_header(header);
    table
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
