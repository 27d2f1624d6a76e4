//! Layers, precedence, and refusals that name key, value and source.

use std::collections::HashMap;
use std::time::Duration;

use bytesize::ByteSize;

use super::{ConfigError, Layers, Loaded};
use crate::engine::DeviceKind;

fn load(
    file: &str,
    env: &[(&str, &str)],
    flags: &[(&'static str, &'static str, &str)],
) -> Result<Loaded, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.toml");
    std::fs::write(&path, file).unwrap();
    let env: HashMap<String, String> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let flags = flags.iter().map(|(flag, key, value)| (*flag, *key, (*value).into())).collect();
    Layers { file: Some(path), env, flags }.load()
}

fn refusal(file: &str, env: &[(&str, &str)]) -> String {
    load(file, env, &[]).unwrap_err().to_string()
}

#[test]
fn empty_means_defaults() {
    let loaded = load("", &[], &[]).unwrap();
    assert_eq!(loaded.config.http.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(loaded.config.data_dir.to_str(), Some("weir-data"));
    assert_eq!(loaded.config.cache.ttl, Duration::from_secs(3600));
    assert!(loaded.sources.is_empty());
}

#[test]
fn later_layers_win() {
    let file =
        "[http]\nlisten = \"127.0.0.1:1\"\nmax_body = \"5 MiB\"\n[engine]\ndevice = \"cpu\"\nlanes = 3\n";
    let env = [("WEIR__HTTP__LISTEN", "127.0.0.1:2"), ("WEIR__ENGINE__LANES", "4"), ("PATH", "/bin")];
    let flags = [("--listen", "http.listen", "127.0.0.1:3")];
    let config = load(file, &env, &flags).unwrap().config;
    assert_eq!(config.http.listen.port(), 3);
    assert_eq!(config.engine.lanes, 4);
    assert_eq!(config.http.max_body, ByteSize::mib(5));
    assert_eq!(config.engine.device, DeviceKind::Cpu);
}

#[test]
fn lists_numbers_and_names_from_the_environment() {
    let env = [
        ("WEIR__FETCH__ALLOW_NETWORKS", "10.0.0.0/8, 192.168.1.0/24"),
        ("WEIR__NODE__NAME", "007"),
        ("WEIR__CACHE__ENABLED", "false"),
        ("WEIR__PREDICT__DEADLINE", "2s"),
        ("WEIR__HTTP__MAX_BODY", "1048576"),
    ];
    let config = load("", &env, &[]).unwrap().config;
    assert_eq!(config.fetch.allow_networks.len(), 2);
    assert_eq!(config.node.name, "007");
    assert!(!config.cache.enabled);
    assert_eq!(config.predict.deadline, Duration::from_secs(2));
    assert_eq!(config.http.max_body, ByteSize::mib(1));
}

#[test]
fn unknown_keys_are_refused_with_key_value_and_source() {
    let text = refusal("[http]\nlisen = \"127.0.0.1:1\"\n", &[]);
    for part in ["weir.toml", "http.lisen", "127.0.0.1:1", "unknown field", "listen"] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    let text = refusal("", &[("WEIR__HTPP__LISTEN", "127.0.0.1:1")]);
    for part in ["WEIR__HTPP__LISTEN", "htpp.listen", "unknown field"] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn bad_values_are_refused_with_key_value_and_source() {
    for (variable, value, key) in [
        ("WEIR__HTTP__LISTEN", "nowhere", "http.listen"),
        ("WEIR__ENGINE__DEVICE", "tpu", "engine.device"),
        ("WEIR__ENGINE__LANES", "-1", "engine.lanes"),
        ("WEIR__PREDICT__DEADLINE", "soon", "predict.deadline"),
        ("WEIR__HTTP__MAX_BODY", "much", "http.max_body"),
        ("WEIR__OUTBOX__WHEN_FULL", "panic", "outbox.when_full"),
        ("WEIR__FETCH__ALLOW_NETWORKS", "10.0.0.0/99", "fetch.allow_networks"),
    ] {
        let text = refusal("", &[(variable, value)]);
        for part in [variable, value, key] {
            assert!(text.contains(part), "{part:?} is missing in: {text}");
        }
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for (file, key) in [
        ("[engine]\nlanes = 5000", "engine.lanes"),
        ("[predict]\ntop_k = 0", "predict.top_k"),
        ("[predict]\ndeadline = \"0s\"", "predict.deadline"),
        ("[predict]\ndeadline = \"2m\"", "predict.max_deadline"),
        ("[http]\nmax_inflight = \"1 MiB\"", "http.max_inflight"),
        ("[outbox]\nmax_bytes = \"1 KiB\"", "outbox.max_bytes"),
        ("[node]\nname = \"\"", "node.name"),
        ("[log]\nlevel = \"inof\"", "log.level"),
        ("[log]\nlevel = \"weir=loud\"", "log.level"),
        ("[predict]\nmax_deadline = \"400days\"", "predict.max_deadline"),
    ] {
        let text = refusal(file, &[]);
        assert!(text.contains(key), "{key:?} is missing in: {text}");
    }
}

#[test]
fn a_file_that_is_not_there_or_not_toml_is_refused() {
    let missing = Layers { file: Some("/nowhere/weir.toml".into()), ..Layers::default() };
    assert!(missing.load().unwrap_err().to_string().contains("/nowhere/weir.toml"));
    assert!(refusal("[http\n", &[]).contains("weir.toml"));
}

#[test]
fn variables_of_links_that_are_not_there_yet_are_reported() {
    let loaded = load("", &[("REDIS_HOST", "redis"), ("KAFKA_PASSWORD", "do-not-show")], &[]).unwrap();
    assert_eq!(loaded.warnings.len(), 2);
    assert!(loaded.warnings.iter().all(|w| !w.contains("do-not-show")));
}

#[test]
fn the_documented_file_holds_every_key_with_its_default() {
    let text = include_str!("../../../weir.toml");
    let commented: String = text
        .lines()
        .map(|line| line.strip_prefix("#:").map_or(line, str::trim_start))
        .flat_map(|line| [line, "\n"])
        .collect();
    let documented: toml::Table = toml::from_str(&commented).unwrap();
    let defaults = toml::Table::try_from(super::Config::default()).unwrap();
    for (section, values) in &defaults {
        let Some(values) = values.as_table() else {
            assert!(documented.contains_key(section), "{section} is not documented");
            continue;
        };
        for key in values.keys() {
            let there = documented.get(section).and_then(|s| s.get(key)).is_some();
            assert!(there, "{section}.{key} is not documented");
        }
    }
    let mut loaded = load(&commented, &[], &[]).unwrap().config;
    loaded.node.name = super::NodeConfig::default().name;
    let mut expected = super::Config::default();
    // Documented with examples, since their default is "unset".
    expected.engine.precision = loaded.engine.precision;
    expected.engine.onnxruntime.clone_from(&loaded.engine.onnxruntime);
    expected.model.bundle.clone_from(&loaded.model.bundle);
    expected.fetch.allow_networks.clone_from(&loaded.fetch.allow_networks);
    assert_eq!(toml::to_string(&loaded).unwrap(), toml::to_string(&expected).unwrap());
}
