//! Layers, precedence, and refusals that name key, value and source.

use std::collections::HashMap;
use std::time::Duration;

use bytesize::ByteSize;
use gpu_kernels::ImageFormat;
use inference::engine::DeviceKind;

use super::{ConfigError, Layers, Loaded, Protocol};

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
        ("WEIR__IMAGE__FORMATS", "jpeg,png"),
        ("WEIR__NODE__NAME", "007"),
        ("WEIR__CACHE__ENABLED", "false"),
        ("WEIR__PREDICT__DEADLINE", "2s"),
        ("WEIR__HTTP__MAX_BODY", "1048576"),
    ];
    let config = load("", &env, &[]).unwrap().config;
    assert_eq!(config.fetch.allow_networks.len(), 2);
    assert_eq!(config.image.formats, [ImageFormat::Jpeg, ImageFormat::Png]);
    assert_eq!(config.node.name, "007");
    assert!(!config.cache.enabled);
    assert_eq!(config.predict.deadline, Duration::from_secs(2));
    assert_eq!(config.http.max_body, ByteSize::mib(1));
}

#[test]
fn unknown_keys_are_refused_with_key_and_source() {
    let text = refusal("[http]\nlisen = \"127.0.0.1:1\"\n", &[]);
    for part in ["weir.toml", "http.lisen", "(hidden)", "unknown field", "listen"] {
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
        ("[outbox]\nbatch_share = 0", "outbox.batch_share"),
        ("[outbox]\nbatch_share = 71", "outbox.batch_share"),
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
fn nothing_that_could_never_work_passes() {
    for (file, key, value, bound) in [
        ("[batch]\nmax_body = 0", "batch.max_body", "0", "between 1"),
        ("[batch]\nmax_queued = 0", "batch.max_queued", "0", "between 1"),
        ("[batch]\nbody_timeout = \"0s\"", "batch.body_timeout", "0s", "ever"),
        ("[fetch]\nmax_concurrent = 0", "fetch.max_concurrent", "0", "between 1"),
        ("[redis]\nport = 0", "redis.port", "0", "between 1"),
        ("[blobs]\nmax_bytes = \"1 KiB\"", "blobs.max_bytes", "1.0 KiB", "less than 1 MiB"),
        ("[blobs]\nmax_bytes = \"500 MiB\"", "blobs.max_bytes", "500.0 MiB", "twice batch.max_body"),
        ("[blobs]\nmin_free = \"2000 TiB\"", "blobs.min_free", "PiB", "more than 1 PiB"),
    ] {
        let text = refusal(file, &[]);
        for part in [key, value, bound] {
            assert!(text.contains(part), "{part:?} is missing in: {text}");
        }
    }
}

#[test]
fn a_ca_file_means_encryption() {
    let config = |env: &[(&str, &str)]| load("", env, &[]).unwrap().config;
    let redis = [("REDIS_HOST", "redis"), ("REDIS_PASSWORD", "p")];
    let with = |more: &[(&'static str, &'static str)]| config(&[redis.as_slice(), more].concat()).redis;
    assert!(!with(&[]).is_encrypted());
    assert!(with(&[("REDIS_CA_FILE", "/ca.pem")]).is_encrypted());
    assert!(with(&[("REDIS_TLS", "true")]).is_encrypted());
    assert!(!with(&[("REDIS_TLS", "false")]).is_encrypted());
    let broker = ("KAFKA_BOOTSTRAP_SERVERS", "broker:9091");
    let ca = ("KAFKA_CA_FILE", "/ca.pem");
    assert_eq!(config(&[broker]).kafka.protocol(), Protocol::Plaintext);
    assert_eq!(config(&[broker, ca]).kafka.protocol(), Protocol::Ssl);
    let login = [broker, ("KAFKA_USER", "u"), ("KAFKA_PASSWORD", "p")];
    assert_eq!(config(&login).kafka.protocol(), Protocol::SaslSsl);
    for (env, both) in [
        ([("REDIS_CA_FILE", "/ca.pem"), ("REDIS_TLS", "false"), broker], ["redis.tls", "redis.ca_file"]),
        (
            [broker, ca, ("WEIR__KAFKA__SECURITY_PROTOCOL", "PLAINTEXT")],
            ["kafka.security_protocol", "kafka.ca_file"],
        ),
    ] {
        let text = refusal("", &env);
        assert!(both.iter().all(|key| text.contains(key)), "{text}");
    }
}

#[test]
fn no_refusal_shows_a_secret() {
    for (variable, value) in [
        ("WEIR__KAFKA__PASSWD", "hunter2"),
        ("WEIR__KAFKA__USER__PASS", "hunter2"),
        ("WEIR__S3__SECRET_ACCESS_KEY", "hunter2"),
        ("WEIR__S3__CREDS", "hunter2"),
        ("WEIR__REDIS", "redis://:hunter2@host"),
        ("WEIR__REDSI__HOST", "redis://:hunter2@host"),
        ("REDIS_HOST", "redis://:hunter2@host"),
        ("REDIS_HOST", "user:hunter2@host"),
        ("KAFKA_BOOTSTRAP_SERVERS", "a:1,user:hunter2@host:9091"),
        ("KAFKA_BOOTSTRAP_SERVERS", "SASL_SSL://user:hunter2@host:9091"),
        ("AWS_ENDPOINT_URL_S3", "http://key:hunter2@host"),
        ("AWS_ENDPOINT_URL_S3", "key:hunter2@host"),
        ("AWS_ENDPOINT_URL", "https://host/?secret=hunter2"),
    ] {
        let text = refusal("", &[(variable, value)]);
        assert!(text.contains("hidden") && !text.contains("hunter2"), "{variable}: {text}");
    }
    // Not even with the line on which it stands.
    for file in [
        "[kafka]\npassword = hunter2\n",
        "[kafka]\npassword = \"hunter2\n",
        "[kafka]\npassword \"hunter2\"\n",
    ] {
        let text = refusal(file, &[]);
        assert!(text.contains("line 2") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_file_that_is_not_there_or_not_toml_is_refused() {
    let missing = Layers { file: Some("/nowhere/weir.toml".into()), ..Layers::default() };
    assert!(missing.load().unwrap_err().to_string().contains("/nowhere/weir.toml"));
    assert!(refusal("[http\n", &[]).contains("weir.toml"));
}

#[test]
fn the_deployments_own_names_are_taken() {
    let env = [
        ("KAFKA_BOOTSTRAP_SERVERS", "broker:9091"),
        ("KAFKA_USER", "kafka_user"),
        ("KAFKA_PASSWORD", "do-not-show"),
        ("KAFKA_TOPIC", "requests"),
        ("KAFKA_GROUP_ID", "workers"),
        ("REDIS_HOST", "redis.ml-inference.svc.cluster.local"),
        // What Kubernetes sets beside a Service of that name.
        ("REDIS_PORT", "tcp://10.2.0.7:6380"),
        ("AWS_REGION", "ru-central1"),
        ("AWS_ENDPOINT_URL", "http://general"),
        ("AWS_ENDPOINT_URL_S3", "http://special"),
        ("S3_BUCKET", ""),
        ("WEIR__KAFKA__GROUP_ID", "mine"),
    ];
    let loaded = load("", &env, &[]).unwrap();
    let config = &loaded.config;
    assert_eq!(
        (config.kafka.bootstrap_servers.as_str(), config.kafka.user.as_str()),
        ("broker:9091", "kafka_user")
    );
    assert_eq!(config.kafka.password.expose(), "do-not-show");
    assert_eq!((config.kafka.requests_topic.as_str(), config.kafka.group_id.as_str()), ("requests", "mine"));
    assert_eq!(
        (config.redis.host.as_str(), config.redis.port),
        ("redis.ml-inference.svc.cluster.local", 6380)
    );
    assert_eq!((config.s3.region.as_str(), config.s3.endpoint.as_str()), ("ru-central1", "http://special"));
    assert_eq!(config.s3.bucket, "");
    assert!(!format!("{config:?}").contains("do-not-show"));
    assert!(!toml::to_string(config).unwrap().contains("do-not-show"));
    let text = refusal("", &[("REDIS_PORT", "many")]);
    assert!(text.contains("REDIS_PORT") && text.contains("many"), "{text}");
}

#[test]
fn links_that_cannot_be_are_refused() {
    let kafka = "[kafka]\nbootstrap_servers = \"b:1\"\n";
    for (file, key) in [
        (format!("{kafka}user = \"u\""), "kafka.password"),
        (format!("{kafka}security_protocol = \"SASL_SSL\""), "kafka.user"),
        (
            format!("{kafka}user = \"u\"\npassword = \"p\"\nsecurity_protocol = \"SSL\""),
            "kafka.security_protocol",
        ),
        (format!("{kafka}password = \"p\"\npassword_file = \"f\""), "kafka.password_file"),
        ("[kafka]\nrequests_topic = \"a b\"".into(), "kafka.requests_topic"),
        ("[kafka]\nrequests_topic = \"t\"\nresults_topic = \"t\"".into(), "kafka.results_topic"),
        ("[kafka]\nsecurity_protocol = \"sasl\"".into(), "kafka.security_protocol"),
        (format!("{kafka}[batch]\nqueue = \"kafka\""), "redis.host"),
        ("[batch]\nchunk = 0".into(), "batch.chunk"),
        ("[batch]\nchunk = 10001".into(), "batch.chunk"),
        ("[batch]\nqueue = \"rabbit\"".into(), "batch.queue"),
        ("[s3]\nendpoint = \"minio:9000\"".into(), "s3.endpoint"),
        ("[s3]\nallow_prefixes = [\"raw/\", \"/x\"]".into(), "s3.allow_prefixes"),
        ("[capture]\nconfidence_below = 1.5".into(), "capture.confidence_below"),
        ("[capture]\nsample = -0.1".into(), "capture.sample"),
        ("[redis]\nprefix = \"a{b\"".into(), "redis.prefix"),
    ] {
        let text = refusal(&file, &[]);
        assert!(text.contains(key), "{key:?} is missing in: {text}");
        assert!(!text.contains("\"p\""), "{text}");
    }
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
    expected.http.admin_listen = loaded.http.admin_listen;
    expected.engine.precision = loaded.engine.precision;
    expected.image.decode_memory = loaded.image.decode_memory;
    expected.engine.onnxruntime.clone_from(&loaded.engine.onnxruntime);
    expected.model.bundle.clone_from(&loaded.model.bundle);
    expected.registry.dir.clone_from(&loaded.registry.dir);
    expected.registry.password_file.clone_from(&loaded.registry.password_file);
    expected.registry.token_file.clone_from(&loaded.registry.token_file);
    expected.registry.ca_file.clone_from(&loaded.registry.ca_file);
    expected.admin.token_file.clone_from(&loaded.admin.token_file);
    expected.fetch.allow_networks.clone_from(&loaded.fetch.allow_networks);
    expected.fetch.ca_file.clone_from(&loaded.fetch.ca_file);
    expected.kafka.password_file.clone_from(&loaded.kafka.password_file);
    expected.kafka.ca_file.clone_from(&loaded.kafka.ca_file);
    expected.redis.password_file.clone_from(&loaded.redis.password_file);
    expected.redis.tls = loaded.redis.tls;
    expected.redis.ca_file.clone_from(&loaded.redis.ca_file);
    expected.s3.ca_file.clone_from(&loaded.s3.ca_file);
    assert_eq!(toml::to_string(&loaded).unwrap(), toml::to_string(&expected).unwrap());
}
