//! Labelled photos over HTTP, with the default bundle and with fp32.

use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::result::{Section, Target};
use super::setup::{Prediction, Setup, progress};
use crate::frames::{Frame, read_file};

const NOT_FISH: &str = "not_fish";

struct Photo {
    frame: Frame,
    label: String,
}

/// How many of each kind came out right.
#[derive(Debug, Default, PartialEq, Eq)]
struct Score {
    fish: usize,
    fish_right: usize,
    others: usize,
    called_fish: usize,
}

pub(super) fn run(setup: &Setup) -> anyhow::Result<Section> {
    let photos = read_photos(setup.photos()?)?;
    let int8 = classify(setup, &setup.bundle, &photos)?;
    let fp32 = classify(setup, setup.fp32_bundle()?, &photos)?;
    let agree = int8.iter().zip(&fp32).filter(|(int8, fp32)| int8 == fp32).count();
    let mut section = Section::new(
        "accuracy",
        "Labelled photos posted to weir: its default (int8) bundle, and the same in fp32.",
    );
    let score = Score::of(&photos, &int8);
    section.hold(
        format!("int8: fish named right, of {}", score.fish),
        score.fish_right as f64,
        "",
        Target::AtLeast(14.0),
    );
    section.hold(
        format!("int8: others called a fish, of {}", score.others),
        score.called_fish as f64,
        "",
        Target::AtMost(1.0),
    );
    section.hold(
        format!("int8 and fp32 agree, of {}", photos.len()),
        agree as f64,
        "",
        Target::AtLeast(38.0),
    );
    let score = Score::of(&photos, &fp32);
    section.note(format!("fp32: fish named right, of {}", score.fish), score.fish_right as f64, "");
    section.note(format!("fp32: others called a fish, of {}", score.others), score.called_fish as f64, "");
    Ok(section)
}

fn read_photos(dir: &Path) -> anyhow::Result<Vec<Photo>> {
    let path = dir.join("labels.csv");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let photos: Vec<Photo> = parse_labels(&text)
        .with_context(|| path.display().to_string())?
        .into_iter()
        .map(|(file, label)| {
            anyhow::Ok(Photo { frame: read_file(&dir.join(file))?, label: label.to_owned() })
        })
        .collect::<Result<_, _>>()?;
    // The targets are counts, which are valid only for this number of photos.
    ensure!(photos.len() == 40, "{} lists {} photos, not 40", path.display(), photos.len());
    Ok(photos)
}

/// File and label of every line after the header.
fn parse_labels(text: &str) -> anyhow::Result<Vec<(&str, &str)>> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    ensure!(header == "file,label", "the header is {header:?}, not \"file,label\"");
    let fields = |line| match str::split_once(line, ',').map(|(file, label)| (file.trim(), label.trim())) {
        Some((file, label)) if !file.is_empty() && !label.is_empty() => Ok((file, label)),
        _ => bail!("a line without two fields: {line:?}"),
    };
    lines.filter(|line| !line.is_empty()).map(fields).collect()
}

fn classify(setup: &Setup, bundle: &Path, photos: &[Photo]) -> anyhow::Result<Vec<String>> {
    let server = setup.start_weir(bundle)?;
    let mut client = server.client()?;
    let species = photos.iter().map(|photo| {
        let reply = client.post(&photo.frame)?;
        let species = Prediction::of(&reply).with_context(|| photo.frame.name.clone())?.species;
        if species != photo.label {
            progress(&format!("{}: {} was named {species}", bundle.display(), photo.label));
        }
        Ok(species)
    });
    species.collect()
}

impl Score {
    fn of(photos: &[Photo], species: &[String]) -> Self {
        let mut score = Self::default();
        for (photo, species) in photos.iter().zip(species) {
            if photo.label == NOT_FISH {
                score.others += 1;
                score.called_fish += usize::from(species != NOT_FISH);
            } else {
                score.fish += 1;
                score.fish_right += usize::from(*species == photo.label);
            }
        }
        score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read() {
        let labels = parse_labels("file,label\ntench.jpg,tench\n dock.jpg , not_fish\n\n").unwrap();
        assert_eq!(labels, [("tench.jpg", "tench"), ("dock.jpg", "not_fish")]);
    }

    #[test]
    fn bad_labels_are_refused() {
        for text in ["", "tench.jpg,tench\n", "file,label\ntench.jpg\n", "file,label\n,tench\n"] {
            assert!(parse_labels(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_wrong_fish_is_no_right_fish_and_a_fish_seen_in_others_counts() {
        let photo = |label: &str| Photo {
            frame: Frame { name: String::new(), bytes: Vec::new() },
            label: label.to_owned(),
        };
        let photos = ["eel", "gar", "tench", NOT_FISH, NOT_FISH].map(photo);
        let species = ["eel", "eel", NOT_FISH, NOT_FISH, "gar"].map(String::from);
        let score = Score::of(&photos, &species);
        assert_eq!(score, Score { fish: 3, fish_right: 1, others: 2, called_fish: 1 });
    }
}
