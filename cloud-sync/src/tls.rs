//! Trust in what a `ca_file` names: authorities, and the certificates of servers that signed their own.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::error::{Link, SyncError, SyncResult};

/// A configuration that trusts the certificates of a PEM file and no others.
///
/// # Errors
/// When the file can't be read, or holds no certificate or one that can't be used.
pub(crate) fn client_config(link: Link, file: &Path) -> SyncResult<ClientConfig> {
    let failed = || SyncError::permanent(link, format!("cannot use the CA file {}", file.display()));
    let pem = std::fs::read(file).map_err(|error| failed().because(error))?;
    let named = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let named = named.map_err(|error| failed().because(error.to_string()))?;
    if named.is_empty() {
        return Err(failed().because("it holds no PEM certificate"));
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = NamedCertificates::new(named, &provider).map_err(|error| failed().because(error))?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed().because(error.to_string()))?;
    let verified = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    Ok(verified.with_no_client_auth())
}

/// Verifies as rustls does, with one addition. `openssl req -x509` marks what it makes as an authority's certificate,
/// and webpki takes no such certificate for a server's. Where the file names that very certificate, there is nothing
/// that an authority could add: its dates and names are checked, and the handshake proves that the server has its key.
#[derive(Debug)]
struct NamedCertificates {
    named: Vec<CertificateDer<'static>>,
    chains: Arc<WebPkiServerVerifier>,
}

impl NamedCertificates {
    fn new(named: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in &named {
            roots.add(certificate.clone()).map_err(|error| error.to_string())?;
        }
        let chains =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        Ok(Self { named, chains: chains.map_err(|error| error.to_string())? })
    }
}

impl ServerCertVerifier for NamedCertificates {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain =
            self.chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match chain {
            // webpki checks the dates before it looks at what the certificate is for.
            Err(error) if is_authority_as_server(&error) && self.named.contains(end_entity) => {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

fn is_authority_as_server(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(other)) = error else { return false };
    matches!(other.0.downcast_ref::<webpki::Error>(), Some(webpki::Error::CaUsedAsEndEntity))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Duration;

    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;
    use crate::health::LinkHealth;
    use crate::registry::{MlflowConfig, MlflowRegistry, ModelRegistry};

    /// A key and the certificate that `openssl req -x509` makes for it.
    fn self_signed(dir: &Path, name: &str, alternative: &str) -> (PathBuf, PathBuf) {
        let (key, certificate) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.pem")));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "30", "-subj", "/CN=localhost"])
            .arg("-addext")
            .arg(format!("subjectAltName={alternative}"))
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        (key, certificate)
    }

    /// A server with TLS that knows no model, on a thread that ends with the process.
    fn server(key: &Path, certificate: &Path) -> u16 {
        let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let config = Arc::new(config);
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
        let verifier = NamedCertificates::new(vec![certificate.clone()], &provider).unwrap();
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
}
