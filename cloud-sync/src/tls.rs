//! Trust in the certificates of a `ca_file`: authorities, and self-signed certificates of servers.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::error::{Link, SyncError, SyncResult};

/// A CA file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the CA file {}: {reason}", file.display())]
pub struct CaFileError {
    file: PathBuf,
    reason: String,
}

/// Certificates that are trusted besides those of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Besides {
    /// None.
    Nothing,
    /// The system's authorities.
    System,
}

/// A TLS client configuration that trusts the certificates of a PEM file.
///
/// # Errors
/// When the file can't be read, or holds no certificate or an invalid one.
pub fn trusting(file: &Path, besides: Besides) -> Result<ClientConfig, CaFileError> {
    let failed = |reason: String| CaFileError { file: file.to_owned(), reason };
    let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    let named = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let named = named.map_err(|error| failed(error.to_string()))?;
    if named.is_empty() {
        return Err(failed("it holds no PEM certificate".into()));
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = NamedCertificates::new(named, besides, &provider).map_err(failed)?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| failed(error.to_string()))?;
    let verified = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    Ok(verified.with_no_client_auth())
}

/// The same for a link's own server: the certificates of the file and no others.
pub(crate) fn client_config(link: Link, file: &Path) -> SyncResult<ClientConfig> {
    trusting(file, Besides::Nothing).map_err(|error| {
        let what = format!("cannot use the CA file {}", file.display());
        SyncError::permanent(link, what).because(error.reason)
    })
}

/// Verifies like rustls, with one exception. `openssl req -x509` marks its output as an authority's certificate, and
/// webpki accepts no such certificate for a server. Where the file contains that very certificate, an authority would
/// add nothing: its dates and names are checked, and the handshake proves that the server has its key.
#[derive(Debug)]
struct NamedCertificates {
    named: Vec<CertificateDer<'static>>,
    chains: Arc<WebPkiServerVerifier>,
}

impl NamedCertificates {
    fn new(
        named: Vec<CertificateDer<'static>>,
        besides: Besides,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        if besides == Besides::System {
            // System certificates that can't be read or parsed are skipped, as in every client.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
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
            // webpki checks the dates before the purpose of the certificate.
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
