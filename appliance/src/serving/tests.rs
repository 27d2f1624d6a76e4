//! Who is given which version, by which name a model is found, what a tally says.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gpu_kernels::ImageFormat;
use inference::bundle::{Bundle, DeviceTag};
use inference::lanes::{
    Classified, ClassifyError, LaneDevice, LaneSettings, Lanes, StageTimings, Unobserved,
};

use super::ServingModel;
use super::endpoint::is_in_part;
use super::{Comparison, LoadedModel, Models, Slot, Tally, TallyReading, Trial, TrialKind};
use crate::models::Origin;

/// Answers always the same.
struct Simulated;

impl LaneDevice for Simulated {
    fn classify(&mut self, _: &[u8]) -> Result<Classified, ClassifyError> {
        let timings = StageTimings::default();
        Ok(Classified { scores: vec![0.9; 17], format: ImageFormat::Bmp, width: 2, height: 2, timings })
    }
}

fn loaded(version: &str) -> Arc<LoadedModel> {
    let bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fish/1")).unwrap();
    let file = bundle.variant(DeviceTag::Cpu, None).unwrap();
    let model = ServingModel::new(&bundle, &file);
    let factory = Arc::new(|_| Ok(Box::new(Simulated) as Box<dyn LaneDevice>));
    let lanes = Lanes::start(&LaneSettings::new(1, 1), factory, Arc::new(Unobserved)).unwrap();
    let origin = Origin { source: "here".into(), name: "registered".into(), version: version.into() };
    Arc::new(LoadedModel::new(model, lanes, Arc::new(bundle), Some(origin)))
}

#[test]
fn a_source_keeps_its_version_and_parts_grow_around_it() {
    let sources: Vec<String> = (0..2000).map(|n| format!("camera-{n}")).collect();
    let in_part = |part| sources.iter().filter(|source| is_in_part("fish", source, part)).collect::<Vec<_>>();
    let (tenth, half) = (in_part(0.1), in_part(0.5));
    assert!((150..250).contains(&tenth.len()) && (900..1100).contains(&half.len()), "{}", tenth.len());
    assert!(
        tenth.iter().all(|source| half.contains(source)),
        "who was in the smaller part is in the larger one"
    );
    assert!(in_part(0.0).is_empty());
    assert_eq!(in_part(1.0).len(), sources.len());
    let other =
        sources.iter().filter(|source| is_in_part("fish", source, 0.5) != is_in_part("birds", source, 0.5));
    assert!(other.count() > 500, "each model has a part of its own");
}

#[test]
fn versions_are_chosen_by_the_kind_of_trial() {
    let slot = Slot::new("fish");
    assert!(slot.choose("a").is_none(), "there is none yet");
    let (old, new) = (loaded("1"), loaded("2"));
    slot.change(|routes| routes.current = Some(Arc::clone(&old)));
    let chosen = slot.choose("a").unwrap();
    assert!(Arc::ptr_eq(&chosen.model, &old) && !chosen.on_trial && chosen.other.is_none());

    let trial = |kind| {
        let on_trial = Trial { model: Arc::clone(&new), kind, comparison: Arc::<Comparison>::default() };
        slot.change(|routes| routes.trial = Some(on_trial));
    };
    trial(TrialKind::Shadow);
    let chosen = slot.choose("a").unwrap();
    assert!(Arc::ptr_eq(&chosen.model, &old) && !chosen.on_trial);
    assert!(chosen.other.is_some_and(|other| other.on_trial && Arc::ptr_eq(&other.model, &new)));

    trial(TrialKind::Canary { part: 0.5 });
    let mut seen = [0, 0];
    for n in 0..200 {
        let source = format!("camera-{n}");
        let (first, second) = (slot.choose(&source).unwrap(), slot.choose(&source).unwrap());
        assert!(Arc::ptr_eq(&first.model, &second.model), "{source} changes its version");
        assert_eq!(first.on_trial, Arc::ptr_eq(&first.model, &new));
        assert_eq!(first.other.is_some(), first.on_trial, "only what the new one answers is compared");
        seen[usize::from(first.on_trial)] += 1;
    }
    assert!(seen[0] > 50 && seen[1] > 50, "{seen:?}");
}

#[test]
fn what_a_monitored_version_answers_is_compared_with_the_one_before() {
    let slot = Slot::new("fish");
    let (old, new) = (loaded("1"), loaded("2"));
    slot.change(|routes| {
        routes.current = Some(Arc::clone(&new));
        routes.standby = Some(Arc::clone(&old));
    });
    assert!(slot.choose("a").unwrap().other.is_none(), "it is not monitored");
    slot.change(|routes| routes.monitored = Some(Arc::default()));
    let chosen = slot.choose("a").unwrap();
    assert!(Arc::ptr_eq(&chosen.model, &new) && !chosen.on_trial);
    assert!(chosen.other.is_some_and(|other| !other.on_trial && Arc::ptr_eq(&other.model, &old)));
    let sampled = (0..10_000).filter(|_| slot.choose("a").unwrap().other.is_some()).count();
    assert!((1300..1600).contains(&sampled), "{sampled} of 10000");
    // Once the one before is unloaded there is nothing to compare with.
    slot.change(|routes| routes.standby = None);
    assert!((0..100).all(|_| slot.choose("a").unwrap().other.is_none()));
}

#[test]
fn a_model_is_found_by_its_own_name_before_its_bundles() {
    let (birds, fish) = (Slot::new("birds"), Slot::new("river"));
    let models = Models::new(Arc::clone(&fish), vec![Arc::clone(&birds)]);
    assert!(models.get("fish").is_none(), "nothing is loaded yet");
    assert_eq!(models.names(), "river, birds");
    for slot in [&fish, &birds] {
        slot.change(|routes| routes.current = Some(loaded("1")));
    }
    assert_eq!(models.get("birds").unwrap().name(), "birds");
    assert_eq!(models.get("fish").unwrap().name(), "river", "the bundle's name, of the first that has it");
    assert!(models.get("cats").is_none());
    assert_eq!(models.default().current().unwrap().describe(), "registered/1");
}

#[test]
fn a_tally_says_how_long_computations_took_to_a_fifth() {
    let tally = Tally::default();
    assert_eq!(tally.read().quantile(0.5), None);
    (0..95).for_each(|_| tally.computed(Duration::from_micros(2000)));
    let before = tally.read();
    (0..5).for_each(|_| tally.computed(Duration::from_millis(40)));
    tally.fail();
    let now = tally.read();
    let near = |quantile: f64, millis: f64| {
        let found = now.quantile(quantile).unwrap().as_secs_f64() * 1e3;
        assert!((millis..=millis * 1.2).contains(&found), "{quantile}: {found} ms");
    };
    near(0.5, 2.0);
    near(0.95, 2.0);
    near(0.96, 40.0);
    assert_eq!((now.computed(), now.failed), (100, 1));
    assert!((now.error_rate() - 1.0 / 101.0).abs() < 1e-9);
    assert_eq!((now.since(&before).computed(), now.since(&before).failed), (5, 1));
    assert_eq!(before.and(&now.since(&before)), now);
    let kept = serde_json::to_string(&now).unwrap();
    assert_eq!(serde_json::from_str::<TallyReading>(&kept).unwrap(), now);
    assert!(kept.len() < 100, "{kept}");
    // Nothing is too short or too long for it.
    tally.computed(Duration::ZERO);
    tally.computed(Duration::from_secs(100_000));
}
