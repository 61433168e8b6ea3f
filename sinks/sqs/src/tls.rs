//! TLS as the client library takes it, which has a type of its own for what is trusted.

use std::path::Path;

use aws_smithy_http_client::tls::{TlsContext, TrustStore};
use walgate_sink::{
    SinkError,
    tls::{self, Spoken, Terms},
};

const TERMS: Terms = Terms::ENDPOINT;

/// The certificates to trust: those of a file, or the system's. `wanted`: SQS itself is asked over TLS, so that a system
/// without certificates is an error. What the client library would panic over is found here.
pub(crate) fn context(ca_file: Option<&Path>, wanted: bool) -> Result<TlsContext, SinkError> {
    let spoken = if wanted { Spoken::Always } else { Spoken::Perhaps };
    let trust = match ca_file {
        Some(path) => TrustStore::empty().with_pem_certificate(tls::ca_file(path)?.0),
        None if tls::system_roots(spoken, TERMS)?.is_empty() => TrustStore::empty(),
        None => TrustStore::default(),
    };
    let context = TlsContext::builder().with_trust_store(trust).build();
    context.map_err(|error| SinkError::fatal(format!("TLS cannot be set up: {error}")))
}

/// What is wrong with the endpoint's certificate, for the operator; `None` for other errors.
pub(crate) fn certificate_fault(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    tls::server_fault(error, TERMS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_hold_no_certificate_are_refused_and_not_shown() {
        let folder = std::env::temp_dir().join(format!("walgate-sqs-tls-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let broken = "-----BEGIN CERTIFICATE-----\ncanary\n-----END CERTIFICATE-----\n";
        let unreadable = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in ["", "canary", broken, unreadable] {
            let path = folder.join("ca.pem");
            std::fs::write(&path, text).unwrap();
            let error = context(Some(&path), true).unwrap_err().message;
            assert!(error.contains("cannot be used") && !error.contains("canary"), "{error}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(context(Some(&folder.join("ca.pem")), true).unwrap_err().message.contains("cannot be used"));
    }
}
