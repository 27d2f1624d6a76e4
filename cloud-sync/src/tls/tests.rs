//! Certificates as `openssl req -x509` makes them, on real TLS connections.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};

use test_services::tls::{self_signed, server_config};

use super::*;
use crate::health::LinkHealth;
use crate::registry::{MlflowConfig, MlflowRegistry, ModelRegistry};

/// A TLS server on a thread that ends with the process.
fn server(key: &Path, certificate: &Path) -> u16 {
    let config = server_config(key, certificate);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, socket.unwrap());
            let body = r#"{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}"#;
            if matches!(stream.read(&mut [0; 8192]), Ok(1..)) {
                let _ = write!(
                    stream,
                    "HTTP/1.1 404 X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
                     connection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    port
}

async fn resolve(host: &str, port: u16, ca_file: &Path) -> Result<(), String> {
    let config = MlflowConfig {
        ca_file: Some(ca_file.to_owned()),
        timeout: Duration::from_secs(20),
        ..MlflowConfig::new(format!("https://{host}:{port}"))
    };
    let registry = MlflowRegistry::open(&config, None, LinkHealth::new(Link::Mlflow)).unwrap();
    let found = registry.resolve(&"fish/1".parse().unwrap()).await;
    found.map(|found| assert_eq!(found, None)).map_err(|error| error.in_full())
}

#[tokio::test]
async fn a_registry_with_a_certificate_that_signed_itself_is_trusted_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (key, certificate) = self_signed(dir.path(), "own", "DNS:localhost,IP:127.0.0.1");
    let port = server(&key, &certificate);
    for host in ["127.0.0.1", "localhost"] {
        resolve(host, port, &certificate).await.unwrap();
    }
    // The same subject and names, another key.
    let (_, other) = self_signed(dir.path(), "other", "DNS:localhost,IP:127.0.0.1");
    let error = resolve("127.0.0.1", port, &other).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let (key, elsewhere) = self_signed(dir.path(), "elsewhere", "DNS:registry.example");
    let error = resolve("127.0.0.1", server(&key, &elsewhere), &elsewhere).await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
}

#[test]
fn dates_and_names_of_a_certificate_that_signed_itself_count() {
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = self_signed(dir.path(), "own", "DNS:localhost");
    let certificate = CertificateDer::from_pem_file(&file).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier = NamedCertificates::new(vec![certificate.clone()], Besides::Nothing, &provider).unwrap();
    let verify = |name: &str, now: UnixTime| {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        match verifier.verify_server_cert(&certificate, &[], &name, &[], now) {
            Err(Error::InvalidCertificate(error)) => Some(error),
            outcome => outcome.map(|_| None).unwrap(),
        }
    };
    let now = UnixTime::now();
    assert_eq!(verify("localhost", now), None);
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let late = verify("localhost", at(now.as_secs() + 31 * 86_400));
    assert!(matches!(late, Some(CertificateError::ExpiredContext { .. })), "{late:?}");
    let early = verify("localhost", at(now.as_secs() - 86_400));
    assert!(matches!(early, Some(CertificateError::NotValidYetContext { .. })), "{early:?}");
    let other = verify("registry.example", now);
    assert!(matches!(other, Some(CertificateError::NotValidForNameContext { .. })), "{other:?}");
}
