//! Somebody on the way who is not the server that was meant: a listener with a TLS certificate that must not be believed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::listen::Listening;
use super::processes;

/// What is wrong with a certificate for `localhost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: the control.
    None,
    /// Signed by a CA that has the right name and another key.
    UnknownCa,
    SelfSigned,
    Expired,
    NotYetValid,
    OtherHost,
    /// A client's: not for servers.
    ClientsOnly,
}

/// All but the control.
pub const FAULTS: [Fault; 6] =
    [Fault::UnknownCa, Fault::SelfSigned, Fault::Expired, Fault::NotYetValid, Fault::OtherHost, Fault::ClientsOnly];

/// The CA that a configuration trusts, as a file.
pub struct Trusted {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub ca_file: PathBuf,
}

impl Trusted {
    pub fn new() -> Trusted {
        let issuer = authority();
        let ca_file = processes::folder("impostor").join("ca.crt");
        std::fs::write(&ca_file, issuer.pem()).expect("a file");
        Trusted { issuer, ca_file }
    }

    fn certificate(&self, fault: Fault) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let host = if fault == Fault::OtherHost { "elsewhere.test" } else { "localhost" };
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, host);
        params.extended_key_usages = vec![match fault {
            Fault::ClientsOnly => ExtendedKeyUsagePurpose::ClientAuth,
            _ => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        match fault {
            Fault::Expired => params.not_after = date_time_ymd(2001, 1, 1),
            Fault::NotYetValid => params.not_before = date_time_ymd(2090, 1, 1),
            _ => {}
        }
        let certificate = match fault {
            Fault::SelfSigned => params.self_signed(&key),
            Fault::UnknownCa => params.signed_by(&key, &authority()),
            _ => params.signed_by(&key, &self.issuer),
        };
        let certificate = certificate.expect("a certificate").der().clone();
        (certificate, PrivateKeyDer::try_from(key.serialize_der()).expect("a key"))
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, "walgate test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    believed: AtomicUsize,
    heard: Mutex<Vec<u8>>,
}

/// See the module. Says nothing after the handshake.
pub struct Impostor {
    listening: Listening,
    seen: Arc<Seen>,
}

impl Impostor {
    /// `greeting`: what a server of this protocol says before TLS begins.
    pub fn start(trusted: &Trusted, fault: Fault, greeting: &'static [u8]) -> Impostor {
        let (certificate, key) = trusted.certificate(fault);
        let config = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a server's certificate");
        let (config, seen) = (Arc::new(config), Arc::new(Seen::default()));
        let of_listener = seen.clone();
        let listening = Listening::start(move |stream| {
            let (config, seen) = (config.clone(), of_listener.clone());
            std::thread::spawn(move || meet(stream, &config, greeting, &seen));
        });
        Impostor { listening, seen }
    }

    pub fn port(&self) -> u16 {
        self.listening.port()
    }

    /// Connections that were made to it.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Handshakes that the other side has finished.
    pub fn believed(&self) -> usize {
        self.seen.believed.load(Ordering::SeqCst)
    }

    /// All that was said to it, before TLS and inside.
    pub fn heard(&self) -> Vec<u8> {
        self.seen.heard.lock().expect("what was heard").clone()
    }
}

/// A `ClientHello` begins with the type of a handshake record.
const HANDSHAKE: u8 = 22;

fn meet(mut stream: TcpStream, config: &Arc<ServerConfig>, greeting: &[u8], seen: &Seen) {
    seen.connections.fetch_add(1, Ordering::SeqCst);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut first = [0];
    if stream.write_all(greeting).is_err() || !matches!(stream.peek(&mut first), Ok(1)) {
        return;
    }
    if first[0] != HANDSHAKE {
        // In clear: whatever it is must not have been said.
        return listen(stream, seen);
    }
    let mut connection = ServerConnection::new(config.clone()).expect("a connection");
    while connection.is_handshaking() {
        if connection.complete_io(&mut stream).is_err() {
            return;
        }
    }
    seen.believed.fetch_add(1, Ordering::SeqCst);
    listen(StreamOwned::new(connection, stream), seen);
}

fn listen(mut stream: impl Read, seen: &Seen) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        seen.heard.lock().expect("what was heard").extend_from_slice(&buffer[..length]);
    }
}
