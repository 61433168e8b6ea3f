//! TLS: rustls with `ring`, and which certificates it takes.

use std::{path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use walgate_sink::SinkError;

use crate::WebhookConfig;

/// The TLS settings of a configuration. Reads `ca_file`, or else the system's certificates.
pub(crate) fn client_config(config: &WebhookConfig, https: bool) -> Result<ClientConfig, SinkError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| SinkError::fatal(format!("TLS cannot be set up: {error}")))?;
    let mut tls = if config.insecure_skip_verify {
        let verifier = Arc::new(TakeAnyCertificate(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    } else {
        let roots = match &config.ca_file {
            Some(path) => roots_of(path)?,
            None if https => system_roots()?,
            None => RootCertStore::empty(),
        };
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    let protocols: &[&[u8]] = if config.http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
    tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(tls)
}

fn roots_of(path: &Path) -> Result<RootCertStore, SinkError> {
    let fatal = |why: String| SinkError::fatal(format!("the CA file {} cannot be used: {why}", path.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fatal(error.to_string()))? {
        let certificate = certificate.map_err(|error| fatal(error.to_string()))?;
        roots.add(certificate).map_err(|error| fatal(error.to_string()))?;
    }
    if roots.is_empty() { Err(fatal("it holds no certificate in PEM form".into())) } else { Ok(roots) }
}

fn system_roots() -> Result<RootCertStore, SinkError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems ship some that no parser takes; the others are what counts.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(SinkError::fatal(
            "this system has no CA certificates to check the endpoint's with: install them (package \
             ca-certificates), or name a file in `ca_file`",
        ));
    }
    Ok(roots)
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

/// For `insecure_skip_verify`: signatures are checked, so that the connection is one, but not whose they are.
#[derive(Debug)]
struct TakeAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for TakeAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
