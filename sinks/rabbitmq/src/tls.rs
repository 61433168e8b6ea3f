//! TLS: rustls with `ring`, and which certificates it takes.

use std::{path::Path, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject as _},
    },
};
use walgate_sink::SinkError;

use crate::TlsConfig;

/// The TLS settings of a configuration. Reads its files, or else the system's certificates where `wanted`: a server may
/// ask for TLS without that.
pub(crate) fn client_config(config: Option<&TlsConfig>, wanted: bool) -> Result<ClientConfig, SinkError> {
    let fatal = |error: rustls::Error| SinkError::fatal(format!("TLS cannot be set up: {error}"));
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(fatal)?;
    let builder = if config.is_some_and(|config| config.insecure_skip_verify) {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(TakeAnyCertificate(provider)))
    } else {
        let roots = match config.and_then(|config| config.ca_file.as_deref()) {
            Some(path) => roots_of(path)?,
            None => system_roots(wanted)?,
        };
        builder.with_root_certificates(roots)
    };
    match config.and_then(|config| Some((config.cert_file.as_deref()?, config.key_file.as_deref()?))) {
        Some((certificate, key)) => {
            let chain = certificates_of(certificate, "client certificate file")?;
            let key_file = key.display();
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                SinkError::fatal(format!("the private key file {key_file} cannot be used: {}", pem_fault(&error)))
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                let certificate = certificate.display();
                SinkError::fatal(format!("{certificate} and {key_file} do not go together: {error}"))
            })
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

fn certificates_of(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, SinkError> {
    let fatal = |why: String| SinkError::fatal(format!("the {what} {} cannot be used: {why}", path.display()));
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| fatal(pem_fault(&error)))?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(|error| fatal(pem_fault(&error)))?;
    if certificates.is_empty() { Err(fatal("it holds no certificate in PEM form".into())) } else { Ok(certificates) }
}

/// What is wrong with a PEM file, without anything of what it holds.
fn pem_fault(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "it holds nothing of that kind in PEM form".to_owned(),
        _ => "it is not in PEM form".to_owned(),
    }
}

fn roots_of(path: &Path) -> Result<RootCertStore, SinkError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates_of(path, "CA file")? {
        roots
            .add(certificate)
            .map_err(|error| SinkError::fatal(format!("the CA file {} cannot be used: {error}", path.display())))?;
    }
    Ok(roots)
}

fn system_roots(wanted: bool) -> Result<RootCertStore, SinkError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems ship some that no parser takes; the others are what counts.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 && wanted {
        return Err(SinkError::fatal(
            "this system has no CA certificates to check the servers' with: install them (package ca-certificates), or \
             name a file in `tls.ca_file`",
        ));
    }
    Ok(roots)
}

/// What a certificate error means for the operator; `None` for other errors.
pub(crate) fn certificate_fault(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let fault = match rustls_error(error)? {
        rustls::Error::InvalidCertificate(fault) => fault,
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::AccessDenied,
        ) => {
            return Some(
                "it does not accept the client's certificate, or misses one: check `tls.cert_file` and `tls.key_file`"
                    .to_owned(),
            );
        }
        _ => return None,
    };
    Some(match fault {
        // A bad signature: a CA of the same name as one that is trusted.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not signed by a CA that is trusted here: name the CA's file in `tls.ca_file`".to_owned()
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
