//! Routing of requests to versions, lookup of models by name, statistics of versions.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gpu_kernels::{DecodeLimits, ImageFormat};
use inference::bundle::{Bundle, DeviceTag};
use inference::engine::EngineError;
use inference::lanes::{
    Classified, ClassifyError, Client, DeviceFactory, LaneDevice, LaneSettings, Lanes, StageTimings,
    Unobserved,
};

use super::endpoint::is_in_part;
use super::{
    ClassificationError, Classifier, Comparison, Endpoint, ImageRequest, LoadedModel, Models, Priority,
    ServingModel, Trial, TrialKind, Uncached, VersionCounts, VersionStats,
};
use crate::models::Origin;
use crate::telemetry::Metrics;

/// Answers always the same.
struct Simulated;

impl LaneDevice for Simulated {
    fn classify(&mut self, _: &[u8]) -> Result<Classified, ClassifyError> {
        let timings = StageTimings::default();
        Ok(Classified { scores: vec![0.9; 17], format: ImageFormat::Bmp, width: 2, height: 2, timings })
    }
}

/// Fails on every image.
struct Failing;

impl LaneDevice for Failing {
    fn classify(&mut self, _: &[u8]) -> Result<Classified, ClassifyError> {
        Err(EngineError::Run(ort::Error::new("simulated")).into())
    }
}

fn loaded(version: &str) -> Arc<LoadedModel> {
    loaded_on(version, Arc::new(|_| Ok(Box::new(Simulated) as Box<dyn LaneDevice>)))
}

fn loaded_on(version: &str, factory: DeviceFactory) -> Arc<LoadedModel> {
    let bundle = Bundle::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fish/1")).unwrap();
    let file = bundle.variant(DeviceTag::Cpu, None).unwrap();
    let model = ServingModel::new(&bundle, &file);
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
    let endpoint = Endpoint::new("fish");
    assert!(endpoint.choose("a").is_none(), "there is none yet");
    let (old, new) = (loaded("1"), loaded("2"));
    endpoint.change(|routes| routes.current = Some(Arc::clone(&old)));
    let chosen = endpoint.choose("a").unwrap();
    assert!(Arc::ptr_eq(&chosen.model, &old) && !chosen.is_candidate && chosen.shadow.is_none());

    let trial = |kind| {
        let on_trial = Trial { model: Arc::clone(&new), kind, comparison: Arc::<Comparison>::default() };
        endpoint.change(|routes| routes.trial = Some(on_trial));
    };
    trial(TrialKind::Shadow);
    let chosen = endpoint.choose("a").unwrap();
    assert!(Arc::ptr_eq(&chosen.model, &old) && !chosen.is_candidate);
    assert!(chosen.shadow.is_some_and(|shadow| shadow.is_candidate && Arc::ptr_eq(&shadow.model, &new)));

    trial(TrialKind::Canary { part: 0.5 });
    let mut seen = [0, 0];
    for n in 0..200 {
        let source = format!("camera-{n}");
        let (first, second) = (endpoint.choose(&source).unwrap(), endpoint.choose(&source).unwrap());
        assert!(Arc::ptr_eq(&first.model, &second.model), "{source} changes its version");
        assert_eq!(first.is_candidate, Arc::ptr_eq(&first.model, &new));
        assert_eq!(first.shadow.is_some(), first.is_candidate, "only what the new one answers is compared");
        seen[usize::from(first.is_candidate)] += 1;
    }
    assert!(seen[0] > 50 && seen[1] > 50, "{seen:?}");
}

#[test]
fn what_a_monitored_version_answers_is_compared_with_the_one_before() {
    let endpoint = Endpoint::new("fish");
    let (old, new) = (loaded("1"), loaded("2"));
    endpoint.change(|routes| {
        routes.current = Some(Arc::clone(&new));
        routes.standby = Some(Arc::clone(&old));
    });
    assert!(endpoint.choose("a").unwrap().shadow.is_none(), "it is not monitored");
    endpoint.change(|routes| routes.monitored = Some(Arc::default()));
    let chosen = endpoint.choose("a").unwrap();
    assert!(Arc::ptr_eq(&chosen.model, &new) && !chosen.is_candidate);
    assert!(chosen.shadow.is_some_and(|shadow| !shadow.is_candidate && Arc::ptr_eq(&shadow.model, &old)));
    let sampled = (0..10_000).filter(|_| endpoint.choose("a").unwrap().shadow.is_some()).count();
    assert!((1300..1600).contains(&sampled), "{sampled} of 10000");
    // Once the one before is unloaded there is nothing to compare with.
    endpoint.change(|routes| routes.standby = None);
    assert!((0..100).all(|_| endpoint.choose("a").unwrap().shadow.is_none()));
}

/// A bitmap of 2 x 2 pixels.
fn picture() -> Bytes {
    let mut file = b"BM".to_vec();
    for field in [70_u32, 0, 54, 40, 2, 2] {
        file.extend_from_slice(&field.to_le_bytes());
    }
    file.extend_from_slice(&[1, 0, 24, 0]);
    file.extend_from_slice(&[0; 40]);
    file.into()
}

fn classifier() -> Classifier {
    Classifier::new(DecodeLimits::default(), Arc::new(Metrics::new()))
}

#[tokio::test]
async fn a_failure_of_a_candidate_is_counted_and_the_current_version_answers() {
    let endpoint = Endpoint::new("fish");
    let failing: DeviceFactory = Arc::new(|_| Ok(Box::new(Failing) as Box<dyn LaneDevice>));
    let (current, candidate) = (loaded("1"), loaded_on("2", failing));
    endpoint.change(|versions| {
        let kind = TrialKind::Canary { part: 1.0 };
        versions.current = Some(Arc::clone(&current));
        versions.trial = Some(Trial { model: Arc::clone(&candidate), kind, comparison: Arc::default() });
    });
    let (classifier, image) = (classifier(), picture());
    let deadline = Instant::now() + Duration::from_secs(600);
    let real_time = Priority::RealTime { client: Client::default(), deadline };
    for (priority, allow_candidate, failures) in
        [(real_time, true, 1), (Priority::Batch, true, 2), (Priority::Batch, false, 2)]
    {
        let request = ImageRequest { image: &image, source: "a", top_k: 3, priority, allow_candidate };
        let answer = classifier.classify(&endpoint, &request, &Uncached).await.unwrap();
        assert!(Arc::ptr_eq(&answer.model, &current), "{priority:?}");
        assert_eq!(answer.predictions.len(), 3);
        assert_eq!(candidate.stats.read().failed, failures, "{priority:?}");
    }
    assert_eq!((current.stats.read().computed(), current.stats.read().failed), (3, 0));
    // What is wrong with the image is no failure of a version.
    let image = Bytes::from_static(b"no image at all");
    let request =
        ImageRequest { image: &image, source: "a", top_k: 3, priority: real_time, allow_candidate: true };
    let refused = classifier.classify(&endpoint, &request, &Uncached).await;
    assert!(matches!(refused, Err(ClassificationError::Image(_))));
    assert_eq!(candidate.stats.read().failed, 2);
}

#[tokio::test]
async fn a_shadow_version_computes_what_the_current_one_answers() {
    let endpoint = Endpoint::new("fish");
    let (current, candidate) = (loaded("1"), loaded("2"));
    let comparison = Arc::<Comparison>::default();
    endpoint.change(|versions| {
        let (model, comparison) = (Arc::clone(&candidate), Arc::clone(&comparison));
        versions.current = Some(Arc::clone(&current));
        versions.trial = Some(Trial { model, kind: TrialKind::Shadow, comparison });
    });
    let (classifier, image, priority) = (classifier(), picture(), Priority::Batch);
    let request = ImageRequest { image: &image, source: "a", top_k: 1, priority, allow_candidate: true };
    let answer = classifier.classify(&endpoint, &request, &Uncached).await.unwrap();
    assert!(Arc::ptr_eq(&answer.model, &current));
    assert_eq!(comparison.read(), (0, 0), "nothing is compared before the answer has been given out");
    classifier.answered(&endpoint, &image, &answer);
    let until = Instant::now() + Duration::from_secs(60);
    while comparison.read() != (1, 0) {
        assert!(Instant::now() < until, "{:?}", comparison.read());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(candidate.stats.read().computed(), 1);
    assert_eq!(endpoint.take_stats().total(), 1);
}

#[test]
fn a_model_is_found_by_its_own_name_before_its_bundles() {
    let (birds, fish) = (Endpoint::new("birds"), Endpoint::new("river"));
    let models = Models::new(Arc::clone(&fish), vec![Arc::clone(&birds)]);
    assert!(models.get("fish").is_none(), "nothing is loaded yet");
    assert_eq!(models.names(), "river, birds");
    for endpoint in [&fish, &birds] {
        endpoint.change(|routes| routes.current = Some(loaded("1")));
    }
    assert_eq!(models.get("birds").unwrap().name(), "birds");
    assert_eq!(models.get("fish").unwrap().name(), "river", "the bundle's name, of the first that has it");
    assert!(models.get("cats").is_none());
    assert_eq!(models.default().current().unwrap().describe(), "registered/1");
}

#[test]
fn quantiles_of_a_versions_computation_times_are_right_to_a_fifth() {
    let stats = VersionStats::default();
    assert_eq!(stats.read().quantile(0.5), None);
    (0..95).for_each(|_| stats.computed(Duration::from_micros(2000)));
    let before = stats.read();
    (0..5).for_each(|_| stats.computed(Duration::from_millis(40)));
    stats.fail();
    let now = stats.read();
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
    assert_eq!(serde_json::from_str::<VersionCounts>(&kept).unwrap(), now);
    assert!(kept.len() < 100, "{kept}");
    // Nothing is too short or too long for it.
    stats.computed(Duration::ZERO);
    stats.computed(Duration::from_secs(100_000));
}
