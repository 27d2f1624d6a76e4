//! The default bundle on labelled photographs, which are not part of the project: WEIR_PHOTOS names their folder, and
//! WEIR_FP32_BUNDLE the same network in fp32. `make test` sets the latter.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use support::weir;

/// File name to what was seen in it.
type Seen = HashMap<String, String>;

fn labels(photos: &Path) -> Seen {
    let table = std::fs::read_to_string(photos.join("labels.csv")).unwrap();
    let rows = table.lines().skip(1).map(|row| row.split_once(',').unwrap());
    rows.map(|(file, label)| (file.to_owned(), label.trim().to_owned())).collect()
}

fn predict(photos: &Path, bundle: &Path) -> Seen {
    let output = weir().args(["predict", "--json", "--bundle"]).arg(bundle).arg(photos).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let rows = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    rows.map(|row| {
        let file = PathBuf::from(row["file"].as_str().unwrap());
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        (name, row["species"].as_str().unwrap().to_owned())
    })
    .collect()
}

#[test]
fn fish_are_named_right_and_int8_agrees_with_fp32() {
    let Some(photos) = std::env::var_os("WEIR_PHOTOS").map(PathBuf::from) else {
        println!("NOT RUN: accuracy, since WEIR_PHOTOS names no folder of labelled photos");
        return;
    };
    let labels = labels(&photos);
    let int8 = predict(&photos, &support::bundle());
    assert_eq!(int8.len(), labels.len(), "every labelled photo is predicted");
    let right = |fish: bool| {
        let these = labels.iter().filter(|(_, label)| (*label != "not_fish") == fish);
        these.map(|(file, label)| usize::from(int8[file] == *label)).collect::<Vec<_>>()
    };
    let (fish, others) = (right(true), right(false));
    let (found, rejected) = (fish.iter().sum::<usize>(), others.iter().sum::<usize>());
    println!(
        "int8: {found} of {} fish named right, {rejected} of {} others called not_fish",
        fish.len(),
        others.len()
    );
    assert!(found + 2 >= fish.len(), "only {found} of {} fish are named right", fish.len());
    assert!(rejected + 1 >= others.len(), "only {rejected} of {} others are called not_fish", others.len());

    let fp32 = std::env::var_os("WEIR_FP32_BUNDLE")
        .expect("WEIR_FP32_BUNDLE is not set; scripts/fp32-bundle makes it");
    let fp32 = predict(&photos, Path::new(&fp32));
    let agreed = int8.iter().filter(|(file, species)| fp32[*file] == **species).count();
    println!("int8 and fp32 agree on {agreed} of {}", int8.len());
    assert!(agreed + 2 >= int8.len(), "int8 and fp32 agree on only {agreed} of {}", int8.len());
}
