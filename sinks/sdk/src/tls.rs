//! TLS for sinks whose clients take a [`ClientConfig`]: rustls with `ring`, and which certificates it takes.
//!
//! A sink that has a mapping `tls:` reads it as [`TlsConfig`], with [`TlsConfig::issues`] in `validate`. One whose keys
//! stand beside the others, or that has more of them, makes a [`TlsConfig`] of its own configuration: with `flatten`,
//! serde could refuse no unknown key.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject as _},
    },
};
use serde::Deserialize;

use crate::{ConfigIssue, PathSegment, SinkError};

/// What stands under `tls:`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificates to trust, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate, and those between it and its CA.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the client's private key.
    pub key_file: Option<PathBuf>,
    /// Takes any certificate: whoever is on the way can read and answer. A sink logs a warning where it is set.
    #[serde(default)]
    pub insecure_skip_verify: bool,
}

impl TlsConfig {
    /// All that is wrong with the settings, each at its place under `tls`.
    #[must_use]
    pub fn issues(&self) -> Vec<ConfigIssue> {
        let mut issues = Vec::new();
        let mut issue = |key: &str, message: &str| {
            let path = ["tls", key].map(|key| PathSegment::Key(key.to_owned())).into();
            issues.push(ConfigIssue { path, message: message.to_owned() });
        };
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => issue("cert_file", "`key_file` is missing: a certificate goes with its private key"),
            (None, Some(_)) => issue("key_file", "`cert_file` is missing: a private key goes with its certificate"),
            _ => {}
        }
        if self.ca_file.is_some() && self.insecure_skip_verify {
            issue("insecure_skip_verify", "with it `ca_file` has no effect: remove one of them");
        }
        issues
    }
}

/// How the texts speak of a sink's other side and of its keys.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Terms {
    /// Whose certificates are checked.
    whose: &'static str,
    /// What stands before the name of a key.
    prefix: &'static str,
}

impl Terms {
    /// Servers, and keys under `tls:`.
    pub const SERVERS: Terms = Terms { whose: "the servers'", prefix: "tls." };
    /// An endpoint, and keys beside the others.
    pub const ENDPOINT: Terms = Terms { whose: "the endpoint's", prefix: "" };
}

/// Whether TLS is spoken: what is made of the system's certificates, where no file names others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// It is an error if there are none.
    Always,
    /// The other side may ask for it: they are read, and may be none.
    Perhaps,
    /// They are not read.
    Never,
}

/// TLS by a configuration. Reads its files, or else the system's certificates.
///
/// # Errors
/// Fatal: a file that cannot be used, by its name and without anything of what it holds; a system without certificates.
pub fn client_config(config: &TlsConfig, spoken: Spoken, terms: Terms) -> Result<ClientConfig, SinkError> {
    let fatal = |error: rustls::Error| SinkError::fatal(format!("TLS cannot be set up: {error}"));
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(fatal)?;
    let builder = if config.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(TakeAnyCertificate(provider)))
    } else {
        let roots = match &config.ca_file {
            Some(path) => ca_file(path)?.1,
            None => system_roots(spoken, terms)?,
        };
        builder.with_root_certificates(roots)
    };
    match (&config.cert_file, &config.key_file) {
        (Some(certificate), Some(key)) => {
            let chain = client_certificates(certificate)?;
            let key_file = key.display();
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                SinkError::fatal(format!("the private key file {key_file} cannot be used: {}", pem_fault(&error)))
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                let certificate = certificate.display();
                SinkError::fatal(format!("{certificate} and {key_file} do not go together: {error}"))
            })
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

/// The text of a file with certificates to trust, and the certificates.
///
/// # Errors
/// Fatal: it cannot be read, or holds no certificate, or one that cannot be trusted.
pub fn ca_file(path: &Path) -> Result<(Vec<u8>, RootCertStore), SinkError> {
    let fatal = |why: String| SinkError::fatal(format!("the CA file {} cannot be used: {why}", path.display()));
    let text = std::fs::read(path).map_err(|error| fatal(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&text).map_err(fatal)? {
        roots.add(certificate).map_err(|error| fatal(error.to_string()))?;
    }
    Ok((text, roots))
}

fn client_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SinkError> {
    let read = std::fs::read(path).map_err(|error| error.to_string()).and_then(|text| certificates(&text));
    read.map_err(|why| {
        SinkError::fatal(format!("the client certificate file {} cannot be used: {why}", path.display()))
    })
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| pem_fault(&error))?;
    if certificates.is_empty() { Err("it holds no certificate in PEM form".to_owned()) } else { Ok(certificates) }
}

/// What is wrong with a PEM file, without anything of what it holds.
fn pem_fault(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "it holds nothing of that kind in PEM form".to_owned(),
        _ => "it is not in PEM form".to_owned(),
    }
}

/// The system's certificates, as far as they can be read.
///
/// # Errors
/// Fatal: there are none, and TLS is always spoken.
pub fn system_roots(spoken: Spoken, terms: Terms) -> Result<RootCertStore, SinkError> {
    let mut roots = RootCertStore::empty();
    if spoken == Spoken::Never {
        return Ok(roots);
    }
    let found = rustls_native_certs::load_native_certs();
    // Systems ship some that no parser takes; the others are what counts.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 && spoken == Spoken::Always {
        let Terms { whose, prefix } = terms;
        return Err(SinkError::fatal(format!(
            "this system has no CA certificates to check {whose} with: install them (package ca-certificates), or name a \
             file in `{prefix}ca_file`"
        )));
    }
    Ok(roots)
}

/// What an error about a certificate means for the operator; `None` for other errors.
#[must_use]
pub fn certificate_fault(error: &(dyn std::error::Error + 'static), terms: Terms) -> Option<String> {
    server_fault(error, terms).or_else(|| client_fault(error, terms))
}

/// What is wrong with the certificate of the other side; `None` for other errors. For sinks that show no certificate of
/// their own.
#[must_use]
pub fn server_fault(error: &(dyn std::error::Error + 'static), terms: Terms) -> Option<String> {
    let rustls::Error::InvalidCertificate(fault) = rustls_error(error)? else { return None };
    Some(match fault {
        // A bad signature: a CA of the same name as one that is trusted.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "its certificate is not signed by a CA that is trusted here: name the CA's file in `{}ca_file`",
            terms.prefix
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another host name".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired".to_owned(),
        other => format!("its certificate is not valid: {other}"),
    })
}

fn client_fault(error: &(dyn std::error::Error + 'static), terms: Terms) -> Option<String> {
    let rustls::Error::AlertReceived(alert) = rustls_error(error)? else { return None };
    let prefix = terms.prefix;
    let is_about_certificates = matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    );
    is_about_certificates.then(|| {
        format!(
            "it does not accept the client's certificate, or misses one: check `{prefix}cert_file` and `{prefix}key_file`"
        )
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_certificate_is_told_in_the_sinks_own_terms() {
        let told = |error: rustls::Error, terms| {
            // As clients wrap it.
            let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
            certificate_fault(&wrapped, terms).unwrap_or_default()
        };
        for (fault, says) in [
            (CertificateError::UnknownIssuer, "name the CA's file in `tls.ca_file`"),
            (CertificateError::BadSignature, "name the CA's file in `tls.ca_file`"),
            (CertificateError::NotValidForName, "for another host name"),
            (CertificateError::Expired, "has expired"),
            (CertificateError::NotValidYet, "is not valid"),
        ] {
            let text = told(rustls::Error::InvalidCertificate(fault.clone()), Terms::SERVERS);
            assert!(text.contains(says), "{fault:?}: {text}");
        }
        let alert = || rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        assert!(told(alert(), Terms::SERVERS).contains("check `tls.cert_file` and `tls.key_file`"));
        assert!(told(alert(), Terms::ENDPOINT).contains("check `cert_file` and `key_file`"));
        assert_eq!(server_fault(&alert(), Terms::ENDPOINT), None);
        assert_eq!(told(rustls::Error::AlertReceived(AlertDescription::InternalError), Terms::SERVERS), "");
        assert_eq!(certificate_fault(&io::Error::other("a broken pipe"), Terms::SERVERS), None);
    }

    #[test]
    fn files_that_cannot_be_used_are_named_and_not_shown() {
        let folder = std::env::temp_dir().join(format!("walgate-sink-tls-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file.pem");
        let of = |ca: Option<&Path>, client: Option<&Path>| {
            let [ca_file, cert_file, key_file] = [ca, client, client].map(|path| path.map(Path::to_path_buf));
            TlsConfig { ca_file, cert_file, key_file, insecure_skip_verify: false }
        };
        for text in ["", "canary", "-----BEGIN CERTIFICATE-----\ncanary\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, text).unwrap();
            for config in [of(Some(&path), None), of(None, Some(&path))] {
                let error = client_config(&config, Spoken::Never, Terms::SERVERS).unwrap_err();
                assert!(error.message.contains("file.pem cannot be used"), "{error}");
                assert!(!error.message.contains("canary"), "{error}");
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(client_config(&TlsConfig::default(), Spoken::Never, Terms::ENDPOINT).is_ok());
        let error = ca_file(&path).unwrap_err();
        assert!(error.message.contains("No such file"), "{error}");
    }
}
