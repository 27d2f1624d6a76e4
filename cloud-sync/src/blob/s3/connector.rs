//! HTTP for a storage whose certificate a CA file names. The storage client's own HTTP takes authorities, and no rule for
//! the certificates of servers that signed their own (see [`crate::tls`]).

use std::path::Path;
use std::time::Duration;

use aws_sdk_s3::config::SharedHttpClient;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use reqwest::redirect::Policy;
use reqwest::{Body, Client};

use crate::error::{Link, SyncError, SyncResult};
use crate::tls;

/// A client that trusts the certificates of a PEM file and no others.
///
/// # Errors
/// When the file can't be used.
pub(super) fn trusting(file: &Path, connect_timeout: Duration) -> SyncResult<SharedHttpClient> {
    // A second installation is refused, which is as good: then there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .tls_backend_preconfigured(tls::client_config(Link::S3, file)?)
        .connect_timeout(connect_timeout)
        // The storage client follows redirects itself, as a request to another address is signed anew.
        .redirect(Policy::none())
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
        .build()
        .map_err(|error| SyncError::permanent(Link::S3, "cannot set up TLS").because(error))?;
    let connector = SharedHttpConnector::new(Connector(client));
    Ok(http_client_fn(move |_, _| connector.clone()))
}

#[derive(Debug)]
struct Connector(Client);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let user = |error: BoxError| ConnectorError::user(error);
            let request = request.try_into_http1x().map_err(|error| user(error.into()))?.map(Body::wrap);
            let path = request.uri().path().to_owned();
            let request = reqwest::Request::try_from(request).map_err(|error| user(error.into()))?;
            if request.url().path() != path {
                // A URL has no such parts, and a request for another path than the signed one is refused.
                return Err(user("a key with a part '.' or '..' can't be had with a CA file".into()));
            }
            let response = client.execute(request).await.map_err(failed)?;
            answer_of(response).map_err(|error| ConnectorError::other(error, None))
        })
    }
}

fn answer_of(response: reqwest::Response) -> Result<HttpResponse, BoxError> {
    let (status, headers) = (response.status().as_u16().try_into()?, response.headers().clone());
    let mut answer = HttpResponse::new(status, SdkBody::from_body_1_x(Body::from(response)));
    for (name, value) in &headers {
        let value = std::str::from_utf8(value.as_bytes())?.to_owned();
        answer.headers_mut().try_append(name.as_str().to_owned(), value)?;
    }
    Ok(answer)
}

fn failed(error: reqwest::Error) -> ConnectorError {
    let error = error.without_url();
    if error.is_timeout() {
        ConnectorError::timeout(error.into())
    } else {
        // Worth another attempt, as every failure before an answer.
        ConnectorError::io(error.into())
    }
}
