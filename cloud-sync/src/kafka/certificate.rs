//! The one thing that is told by a text of librdkafka: whether a TLS failure is about the broker's certificate.
//!
//! librdkafka has one code for all of TLS (`RD_KAFKA_RESP_ERR__SSL`), and what OpenSSL says only as text. But a certificate
//! that is not trusted stays so until a person acts, and a broker that goes away in a handshake is back in a moment. The
//! texts are those of librdkafka 2.x and OpenSSL 3; the tests hold them against a real broker. A text that is not known
//! makes the failure one that passes: it is tried again for ever and shown as it is.

const SIGNS: [&str; 4] = [
    "certificate verify failed",
    "verify broker certificate",
    "did not provide a certificate",
    "hostname mismatch",
];

pub(super) fn is_refused(reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    SIGNS.iter().any(|sign| reason.contains(sign))
}
