//! TLS to PostgreSQL: which certificates are asked for and how strictly they are looked at, by `sslmode`.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

use super::conninfo::SslMode;

/// `sslmode` and the files beside it.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// How much is asked for.
    pub mode: SslMode,
    /// Whom to trust.
    pub roots: RootCertificates,
    /// Our own certificate (`sslcert`).
    pub certificate: Option<PathBuf>,
    /// Its key (`sslkey`).
    pub key: Option<PathBuf>,
    /// `~/.postgresql`, where libpq looks for what is not set.
    pub default_folder: Option<PathBuf>,
}

impl TlsSettings {
    /// Whether a server's certificate is checked against a root at all.
    #[must_use]
    pub fn verifies(&self) -> bool {
        match &self.roots {
            RootCertificates::System | RootCertificates::File(_) => true,
            RootCertificates::Default(path) => path.as_ref().is_some_and(|path| path.exists()),
        }
    }
}

/// `sslrootcert`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCertificates {
    /// `~/.postgresql/root.crt`, if it exists.
    Default(Option<PathBuf>),
    /// This file.
    File(PathBuf),
    /// The operating system's.
    System,
}

/// Certificates or keys on our side cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// There is nobody to trust.
    #[error("sslmode={mode} needs a root certificate and there is none{}: set sslrootcert to the file of the authority that signed the server's certificate, or to `system`", .looked.as_ref().map(|path| format!(" (looked for `{path}`)")).unwrap_or_default())]
    NoRoots {
        /// The `sslmode`.
        mode: &'static str,
        /// Where it was looked for.
        looked: Option<String>,
    },
    /// A file cannot be read, or is not what it should be.
    #[error("{what} `{path}` cannot be used: {reason}")]
    File {
        /// Which one.
        what: &'static str,
        /// Its path.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The operating system has no certificates.
    #[error(
        "the operating system has no trusted certificates (sslrootcert=system): install them, such as the package ca-certificates"
    )]
    NoSystemRoots,
    /// rustls does not take the combination.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// The client's side of TLS, by the settings. Files are read at each call, so that a renewed certificate is seen by the
/// next connection.
///
/// As in libpq a root certificate that is there is used: with `require` and below the chain is then verified too.
///
/// # Errors
/// Where a file is missing, malformed, or readable by others (keys).
pub fn client_config(settings: &TlsSettings) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier {
        roots: roots(settings)?,
        check_name: settings.mode == SslMode::VerifyFull,
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Setup(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match identity(settings)? {
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|error| TlsError::Setup(error.to_string()))?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// A handshake's error with what to do about it.
pub(super) fn explain(error: &Error) -> String {
    let advice = match error {
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "connect by a name that the certificate has (as subjectAltName: a common name alone does not count), or use sslmode=verify-ca"
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "sslrootcert does not hold the authority that signed the server's certificate"
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "renew the server's certificate, or check the clocks"
        }
        Error::InvalidCertificate(CertificateError::Other(_)) => {
            "a certificate that is its own authority cannot be verified: sign it by one, and trust that"
        }
        Error::InvalidCertificate(_) => "check the server's certificate and sslrootcert",
        Error::AlertReceived(_) => "the server refused: check sslcert and sslkey, and the server's log",
        _ => "check that both sides speak TLS 1.2 or newer",
    };
    format!("{error}: {advice}")
}

fn roots(settings: &TlsSettings) -> Result<Option<Arc<RootCertStore>>, TlsError> {
    let verifying = matches!(settings.mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let path = match &settings.roots {
        RootCertificates::System => return system_roots().map(Some),
        RootCertificates::File(path) => path,
        RootCertificates::Default(Some(path)) if path.exists() => path,
        RootCertificates::Default(looked) if verifying => {
            let looked = looked.as_ref().map(|path| path.display().to_string());
            return Err(TlsError::NoRoots { mode: settings.mode.name(), looked });
        }
        RootCertificates::Default(_) => return Ok(None),
    };
    let mut store = RootCertStore::empty();
    for certificate in certificates("root certificate file", path)? {
        store.add(certificate).map_err(|error| file("root certificate file", path, error))?;
    }
    Ok(Some(Arc::new(store)))
}

fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() { Err(TlsError::NoSystemRoots) } else { Ok(Arc::new(store)) }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(settings: &TlsSettings) -> Result<Option<Identity>, TlsError> {
    let by_default = |name: &str| settings.default_folder.as_ref().map(|folder| folder.join(name));
    let certificate = match &settings.certificate {
        Some(path) => path.clone(),
        None => match by_default("postgresql.crt").filter(|path| path.exists()) {
            Some(path) => path,
            None => return Ok(None),
        },
    };
    let Some(key) = settings.key.clone().or_else(|| by_default("postgresql.key")) else {
        return Err(file("client certificate", &certificate, "its key is not set: set sslkey"));
    };
    let chain = certificates("client certificate", &certificate)?;
    let metadata = std::fs::metadata(&key).map_err(|error| file("client key", &key, error))?;
    // libpq's rule: the owner's alone, or root's and one group's.
    let allowed = if metadata.uid() == 0 { 0o640 } else { 0o600 };
    if metadata.permissions().mode() & 0o777 & !allowed != 0 {
        return Err(file("client key", &key, format!("others can read it: run `chmod 600 {}`", key.display())));
    }
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| file("client key", &key, error))?;
    Ok(Some((chain, key)))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| file(what, path, error))?;
    if chain.is_empty() {
        return Err(file(what, path, "it holds no certificate in PEM form"));
    }
    Ok(chain)
}

fn file(what: &'static str, path: &Path, reason: impl ToString) -> TlsError {
    TlsError::File { what, path: path.display().to_string(), reason: reason.to_string() }
}

/// Looks at the server's certificate as closely as the `sslmode` says; the handshake's signature is always verified.
#[derive(Debug)]
struct Verifier {
    /// `None`: any certificate will do.
    roots: Option<Arc<RootCertStore>>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
            if self.check_name {
                verify_server_name(&certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
