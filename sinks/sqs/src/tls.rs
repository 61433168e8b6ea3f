//! TLS: rustls with `ring`, and which certificates it takes.

use std::path::Path;

use aws_smithy_http_client::tls::{TlsContext, TrustStore};
use rustls::{
    CertificateError, RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject as _},
    },
};
use walgate_sink::SinkError;

/// The certificates to trust: those of a file, or the system's. `wanted`: SQS itself is asked over TLS, so that a system
/// without certificates is an error. What the client library would panic over is found here.
pub(crate) fn context(ca_file: Option<&Path>, wanted: bool) -> Result<TlsContext, SinkError> {
    let trust = match ca_file {
        Some(path) => TrustStore::empty().with_pem_certificate(checked(path)?),
        None if system_has_roots() => TrustStore::default(),
        None if wanted => {
            return Err(SinkError::fatal(
                "this system has no CA certificates to check the endpoint's with: install them (package \
                 ca-certificates), or name a file in `ca_file`",
            ));
        }
        None => TrustStore::empty(),
    };
    let context = TlsContext::builder().with_trust_store(trust).build();
    context.map_err(|error| SinkError::fatal(format!("TLS cannot be set up: {error}")))
}

/// The file's text, each certificate of which can be trusted.
fn checked(path: &Path) -> Result<Vec<u8>, SinkError> {
    let fatal = |why: String| SinkError::fatal(format!("the CA file {} cannot be used: {why}", path.display()));
    let text = std::fs::read(path).map_err(|error| fatal(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| fatal(pem_fault(&error)))?;
        roots.add(certificate).map_err(|error| fatal(error.to_string()))?;
    }
    if roots.is_empty() { Err(fatal("it holds no certificate in PEM form".to_owned())) } else { Ok(text) }
}

/// What is wrong with a PEM file, without anything of what it holds.
fn pem_fault(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        _ => "it is not in PEM form".to_owned(),
    }
}

fn system_has_roots() -> bool {
    let found = rustls_native_certs::load_native_certs();
    // Systems ship some that no parser takes; the others are what counts.
    RootCertStore::empty().add_parsable_certificates(found.certs).0 > 0
}

/// What a certificate error means for the operator; `None` for other errors.
pub(crate) fn certificate_fault(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let rustls::Error::InvalidCertificate(fault) = rustls_error(error)? else { return None };
    Some(match fault {
        // A bad signature: a CA of the same name as one that is trusted.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not signed by a CA that is trusted here: name the CA's file in `ca_file`".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another host name".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired".to_owned(),
        other => format!("its certificate is not valid: {other}"),
    })
}

/// rustls's own error inside of others; `io::Error` does not show what it wraps as its source.
fn rustls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref()) {
            Some(wrapped) => Some(wrapped as &'a (dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    None
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
