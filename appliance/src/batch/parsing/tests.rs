//! Valid and invalid bodies of every form: what is parsed, and what a refusal says.

use std::io::Write;

use super::*;

const BOUNDS: IntakeBounds = IntakeBounds { max_images: 4, max_file: 1000, labels: 17 };

struct Bench {
    spool: Spool,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { spool: Spool::open(dir.path().to_path_buf()).unwrap(), dir }
    }

    async fn read_as(
        &self,
        content_type: &str,
        query: BatchOptions,
        body: &[u8],
    ) -> Result<Intake, IntakeError> {
        let (mut file, path) = self.spool.create().unwrap().into_parts();
        file.write_all(body).unwrap();
        read(path, content_type, query, &self.spool, BOUNDS).await
    }

    async fn json(&self, body: &str) -> Result<Intake, IntakeError> {
        self.read_as("application/json", BatchOptions::default(), body.as_bytes()).await
    }

    async fn form(&self, parts: &[(&str, &[u8])]) -> Result<Intake, IntakeError> {
        self.read_as("multipart/form-data; boundary=xyz", BatchOptions::default(), &form(parts)).await
    }

    fn files_left(&self) -> usize {
        std::fs::read_dir(self.dir.path()).unwrap().count()
    }
}

/// Name and content.
type Part<'a> = (&'a str, &'a [u8]);

fn form(parts: &[Part<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, content) in parts {
        let file = if *name == "file" { "; filename=\"a.jpg\"" } else { "" };
        write!(body, "--xyz\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").unwrap();
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--xyz--\r\n");
    body
}

fn urls(intake: &Intake) -> Vec<String> {
    let Images::Urls(list) = &intake.images else { panic!("no URLs in {intake:?}") };
    let mut reader = list.drain().unwrap();
    (0..list.count).map(|_| reader.next_url().unwrap()).collect()
}

#[tokio::test]
async fn json_is_read_with_its_fields_in_any_order() {
    let bench = Bench::new();
    let all = r#"{"top_k": 3, "image_urls": ["http://a/1", "s3://b/2", "http://a/1"], "camera": "dock-3", "request_id": "mine"}"#;
    let other = r#"{"request_id":"yours","camera":"dock-3","image_urls":["http://a/1","s3:\/\/b/\u0032","http://a/1"],"top_k":3}"#;
    let (first, second) = (bench.json(all).await.unwrap(), bench.json(other).await.unwrap());
    assert_eq!(urls(&first), ["http://a/1", "s3://b/2", "http://a/1"]);
    assert_eq!(urls(&second), urls(&first));
    assert_eq!(first.total, 3);
    let options =
        BatchOptions { request_id: Some("mine".into()), camera: Some("dock-3".into()), top_k: Some(3) };
    assert_eq!(first.options, options);
    assert_eq!(first.digest, second.digest, "the id is not part of what is asked");
    assert_eq!(first.digest.len(), 64);

    let bare = bench.json(r#"{"image_urls": ["http://a/1"], "camera": null}"#).await.unwrap();
    assert_eq!(bare.options, BatchOptions::default());
    drop((first, second, bare));
    assert_eq!(bench.files_left(), 0);
}

#[tokio::test]
async fn a_digest_tells_batches_apart() {
    let bench = Bench::new();
    let mut digests = std::collections::HashSet::new();
    for body in [
        r#"{"image_urls": ["http://a/1", "http://a/2"]}"#,
        r#"{"image_urls": ["http://a/2", "http://a/1"]}"#,
        r#"{"image_urls": ["http://a/1"]}"#,
        r#"{"image_urls": ["http://a/1", "http://a/1"]}"#,
        r#"{"image_urls": ["http://a/1", "http://a/2"], "camera": "a"}"#,
        r#"{"image_urls": ["http://a/1", "http://a/2"], "top_k": 1}"#,
    ] {
        assert!(digests.insert(bench.json(body).await.unwrap().digest), "{body}");
    }
    for parts in [&[("file", &b"ab"[..]), ("file", b"c")], &[("file", &b"a"[..]), ("file", b"bc")]] {
        assert!(digests.insert(bench.form(parts).await.unwrap().digest), "{parts:?}");
    }
    let named = bench.form(&[("file", b"ab"), ("request_id", b"x"), ("files", b"c")]).await.unwrap();
    assert!(!digests.insert(named.digest), "neither the id nor the fields' names are part of it");
}

#[tokio::test]
async fn what_is_wrong_with_json_is_named() {
    let bench = Bench::new();
    let long_id = format!(r#"{{"image_urls": ["http://a/1"], "request_id": "{}"}}"#, "a".repeat(129));
    let long_url = format!(r#"{{"image_urls": ["http://a/1", "http://a/{}"]}}"#, "a".repeat(4096));
    let huge = format!(r#"{{"image_urls": ["http://a/1", "{}"]}}"#, "a".repeat(100_000));
    for (body, says) in [
        ("", &["empty"][..]),
        ("  \n", &["neither a JSON object"]),
        ("image_urls=x", &["neither a JSON object"]),
        ("[]", &["invalid type: sequence", "an object with image_urls"]),
        ("{}", &["no image_urls", "at least one"]),
        (r#"{"image_urls": []}"#, &["image_urls is empty", "at least one"]),
        (r#"{"image_urls": null}"#, &["invalid type: null", "an array of strings as image_urls"]),
        (r#"{"image_urls": "http://a/1"}"#, &["an array of strings as image_urls"]),
        (r#"{"image_urls": ["http://a/1", 5]}"#, &["a string as image_urls[1]", "integer `5`"]),
        (r#"{"image_urls": ["http://a/1", null]}"#, &["a string as image_urls[1]"]),
        (r#"{"image_urls": ["http://a/1", ["http://a/2"]]}"#, &["a string as image_urls[1]"]),
        (
            r#"{"image_urls": ["http://a/1", "file:///etc/passwd"]}"#,
            &["image_urls[1]", "file:///etc/passwd", "scheme"],
        ),
        (r#"{"image_urls": ["blob:0"]}"#, &["image_urls[0]", "blob:0", "scheme"]),
        (
            r#"{"image_urls": ["http://a/1", "https://user:hunter2@h/a.jpg?k=hunter3"]}"#,
            &["image_urls[1]", "https://h/a.jpg…", "user name or password"],
        ),
        (r#"{"image_urls": ["http://u:hun?hunter2@h/"]}"#, &["image_urls[0]", "no URL"]),
        (r#"{"image_urls": ["s3://bucket/a/../b"]}"#, &["image_urls[0]", "s3://bucket/a/../b", ". or .."]),
        (r#"{"image_urls": [""]}"#, &["image_urls[0]", "empty"]),
        (&long_url, &["image_urls[1]", "4096"]),
        (&huge, &["after 1 image_urls", "4096"]),
        (
            r#"{"image_urls": ["http://a/1","http://a/2","http://a/3","http://a/4","http://a/5"]}"#,
            &["more than 4 image_urls", "batch.max_images"],
        ),
        (
            r#"{"image_urls": ["http://a/1"], "image_urls": ["http://a/2"]}"#,
            &["duplicate field `image_urls`"],
        ),
        (r#"{"image_urls": ["http://a/1"], "camera": "a", "camera": "a"}"#, &["camera is given twice"]),
        (r#"{"image_urls": ["http://a/1"], "urls": 1}"#, &["unknown field `urls`", "image_urls"]),
        (r#"{"image_urls": ["http://a/1"], "camera": 5}"#, &["a string as camera", "integer `5`"]),
        (r#"{"image_urls": ["http://a/1"], "camera": {"a": 1}}"#, &["a string as camera"]),
        (r#"{"image_urls": ["http://a/1"], "camera": ""}"#, &["camera = \"\"", "128"]),
        (r#"{"image_urls": ["http://a/1"], "top_k": "3"}"#, &["a whole number as top_k"]),
        (r#"{"image_urls": ["http://a/1"], "top_k": 1.5}"#, &["a whole number as top_k"]),
        (r#"{"image_urls": ["http://a/1"], "top_k": -1}"#, &["a whole number as top_k"]),
        (r#"{"image_urls": ["http://a/1"], "top_k": 0}"#, &["top_k = \"0\"", "1 to 17"]),
        (r#"{"image_urls": ["http://a/1"], "top_k": 18}"#, &["top_k = \"18\"", "1 to 17"]),
        (r#"{"image_urls": ["http://a/1"], "request_id": "a/b"}"#, &["request_id = \"a/b\"", "128"]),
        (r#"{"image_urls": ["http://a/1"], "request_id": ".."}"#, &["request_id = \"..\""]),
        (&long_id, &["request_id", "128"]),
        (r#"{"image_urls": ["http://a/1"]} {}"#, &["trailing characters"]),
        (r#"{"image_urls": ["http://a/1""#, &["EOF"]),
        (r#"{"image_urls": ["http://a/\ud800"]}"#, &["hex escape"]),
    ] {
        let content_type = if body.starts_with(['{', '[']) { "application/json" } else { "text/plain" };
        let error = bench.read_as(content_type, BatchOptions::default(), body.as_bytes()).await.unwrap_err();
        let text = error.to_string();
        let start: String = body.chars().take(80).collect();
        assert!(says.iter().all(|word| text.contains(word)), "{start}: {text} lacks one of {says:?}");
        assert!(text.len() < 500, "{start}: {text}");
        assert!(!text.contains("hunter"), "{start}: {text}");
    }
    let error = bench.read_as("", BatchOptions::default(), b"{\"image_urls\": [\"http://\xff\"]}").await;
    assert!(matches!(error, Err(IntakeError::Json(_))), "{error:?}");
    assert_eq!(bench.files_left(), 0, "nothing of a refused body stays");
}

#[tokio::test]
async fn a_form_is_read_with_its_fields_in_any_order() {
    let bench = Bench::new();
    let large = vec![7; 1000];
    let parts: &[(&str, &[u8])] =
        &[("file", &large), ("top_k", b"3"), ("comment", &large), ("files", b""), ("request_id", b"mine")];
    let intake = bench.form(parts).await.unwrap();
    assert_eq!(intake.total, 2);
    let options = BatchOptions { request_id: Some("mine".into()), camera: None, top_k: Some(3) };
    assert_eq!(intake.options, options);
    let Images::Files(form) = &intake.images else { panic!("no files in {intake:?}") };
    let mut files = form.drain().await.unwrap();
    for expected in [&large[..], b""] {
        let file = files.next_file(&bench.spool).await.unwrap().unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), expected);
    }
    assert!(files.next_file(&bench.spool).await.unwrap().is_none());
    drop(intake);
    assert_eq!(bench.files_left(), 0);
}

#[tokio::test]
async fn what_is_wrong_with_a_form_is_named() {
    let bench = Bench::new();
    let (over, long) = (vec![7; 1001], vec![b'a'; 4097]);
    let five = [("file", &b"a"[..]); 5];
    let cases: [(&[Part<'_>], &[&str]); 8] = [
        (&[], &["the form"]),
        (&[("camera", b"a")], &["no field called file", "at least one"]),
        (&[("file", b"a"), ("file", &over)], &["file 1", "a.jpg", "1000 bytes", "http.max_body"]),
        (&five, &["more than 4 files", "batch.max_images"]),
        (&[("file", b"a"), ("camera", &long)], &["camera", "4096"]),
        (&[("file", b"a"), ("top_k", b"many")], &["top_k = \"many\"", "1 to 17", "form"]),
        (&[("file", b"a"), ("camera", b"a"), ("camera", b"a")], &["camera is given twice"]),
        (&[("file", b"a"), ("request_id", b"a b")], &["request_id = \"a b\""]),
    ];
    for (parts, says) in cases {
        let text = bench.form(parts).await.unwrap_err().to_string();
        assert!(says.iter().all(|word| text.contains(word)), "{text} lacks one of {says:?}");
    }
    let whole = form(&[("file", b"abc")]);
    for cut in [1, 10, 60, whole.len() - 6] {
        let cut = &whole[..cut];
        let error = bench.read_as("multipart/form-data; boundary=xyz", BatchOptions::default(), cut).await;
        assert!(matches!(error, Err(IntakeError::Form(_))), "{error:?}");
    }
    let error = bench.read_as("multipart/form-data", BatchOptions::default(), &whole).await;
    assert!(matches!(error, Err(IntakeError::Form(_))), "{error:?}");
    assert_eq!(bench.files_left(), 0);
}

/// The form's reader collects the head of a part until it has its end, and this one has none.
#[tokio::test]
async fn a_part_without_an_end_to_its_head_is_not_collected() {
    let bench = Bench::new();
    for start in ["", "--xyz\r\nContent-Disposition: "] {
        let mut body = start.as_bytes().to_vec();
        body.resize(4 << 20, b'a');
        let error = bench
            .read_as("multipart/form-data; boundary=xyz", BatchOptions::default(), &body)
            .await
            .unwrap_err();
        let reason =
            std::error::Error::source(&error).and_then(std::error::Error::source).unwrap().to_string();
        assert!(reason.contains("256 KiB"), "{error}: {reason}");
    }
}

#[tokio::test]
async fn query_and_body_may_agree_and_must_not_contradict() {
    let bench = Bench::new();
    let body = br#"{"image_urls": ["http://a/1"], "camera": "a"}"#;
    let query = |camera: &str| BatchOptions {
        camera: Some(camera.into()),
        top_k: Some(2),
        ..BatchOptions::default()
    };
    let intake = bench.read_as("application/json", query("a"), body).await.unwrap();
    assert_eq!(intake.options, query("a"));
    let same = bench.json(r#"{"image_urls": ["http://a/1"], "camera": "a", "top_k": 2}"#).await.unwrap();
    assert_eq!(intake.digest, same.digest, "it does not matter where an option stands");
    let error = bench.read_as("application/json", query("b"), body).await.unwrap_err().to_string();
    assert!(error.contains("camera") && error.contains("\"a\"") && error.contains("\"b\""), "{error}");
}

/// Bytes that the files of the spool take on the disk.
fn on_disk(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    files.map(|file| file.blocks() * 512).sum()
}

#[tokio::test]
async fn a_body_is_on_the_disk_once() {
    const MARGIN: u64 = 4 << 20;
    let bench = Bench::new();
    let bounds = IntakeBounds { max_images: 10_000, max_file: 8 << 20, labels: 17 };
    let body = |content: &[u8]| {
        let (mut file, path) = bench.spool.create().unwrap().into_parts();
        file.write_all(content).unwrap();
        (std::fs::File::open(&path).unwrap(), path)
    };
    // The open file keeps the body on the disk after its name is gone: what is read of it is not.
    let list: Vec<String> = (0..8000).map(|n| format!("http://h/{n}/{}", "x".repeat(4000))).collect();
    let json = serde_json::to_vec(&serde_json::json!({ "image_urls": list })).unwrap();
    let (open, path) = body(&json);
    let intake = read(path, "application/json", BatchOptions::default(), &bench.spool, bounds).await.unwrap();
    let left = std::os::unix::fs::MetadataExt::blocks(&open.metadata().unwrap()) * 512;
    let total = left + on_disk(bench.dir.path());
    assert!(total < json.len() as u64 + MARGIN, "{total} bytes for {}", json.len());
    let Images::Urls(list) = &intake.images else { panic!("no URLs") };
    let mut urls = list.drain().unwrap();
    for _ in 0..8000 {
        urls.next_url().unwrap();
    }
    let left = on_disk(bench.dir.path());
    assert!(left < MARGIN, "{left} bytes of a list whose URLs are in the queue");
    drop((intake, open));

    let files: Vec<Vec<u8>> = (0..8).map(|n| vec![n; 4 << 20]).collect();
    let parts: Vec<Part<'_>> = files.iter().map(|file| ("file", file.as_slice())).collect();
    let content = form(&parts);
    let (open, path) = body(&content);
    let content_type = "multipart/form-data; boundary=xyz";
    let intake = read(path, content_type, BatchOptions::default(), &bench.spool, bounds).await.unwrap();
    let Images::Files(form) = &intake.images else { panic!("no files") };
    let mut form = form.drain().await.unwrap();
    let mut stored = Vec::new();
    while let Some(file) = form.next_file(&bench.spool).await.unwrap() {
        stored.push(file);
        let total = on_disk(bench.dir.path());
        assert!(total < content.len() as u64 + 2 * MARGIN, "{total} bytes for {}", content.len());
    }
    assert_eq!(stored.len(), 8);
    assert!(stored.iter().zip(&files).all(|(path, file)| std::fs::read(path).unwrap() == *file));
    drop(open);
}
