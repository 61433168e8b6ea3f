//! Certificates, good and bad, and HTTP/2.

use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use walgate_sink::SinkErrorKind;

use super::*;

/// A CA in a file of its own, and servers with certificates of it.
pub(super) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: File,
}

/// A file that goes with its value.
#[derive(serde::Serialize)]
#[serde(transparent)]
struct File(std::path::PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static FILES: AtomicUsize = AtomicUsize::new(0);
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("walgate-webhook-{}-{number}.pem", std::process::id()));
        std::fs::write(&file, text).unwrap();
        File(file)
    }
}

impl std::ops::Deref for File {
    type Target = std::path::Path;

    fn deref(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Ca {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = File::new(&issuer.pem());
        Ca { issuer, file }
    }

    /// A client's certificate and its key.
    fn client(&self) -> (File, File) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(Vec::new()).unwrap().signed_by(&key, &self.issuer).unwrap();
        (File::new(&certificate.pem()), File::new(&key.serialize_pem()))
    }

    pub(super) fn server(&self, host: &str, change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }

    pub(super) fn config(&self) -> Value {
        json!({ "ca_file": self.file })
    }
}

fn https(server: &Server) -> String {
    format!("https://localhost:{}/hooks", server.addr.port())
}

#[tokio::test]
async fn a_ca_file_is_trusted_in_place_of_the_systems() {
    let ca = Ca::new("trusted");
    let mut server = Server::start_tls([status("200 OK")], ca.server("localhost", |_| {})).await;
    let sink = sink_with(ca.config(), &https(&server), LONG);
    assert_eq!(sink.check().await, Ok(()));
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    assert_eq!(server.next().await.body, BODY);
}

#[tokio::test]
async fn bad_certificates_are_fatal_and_named() {
    let (ca, other, namesake) = (Ca::new("ours"), Ca::new("other"), Ca::new("ours"));
    let expire = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    for (tls, says) in [
        (other.server("localhost", |_| {}), "not signed by a CA that is trusted here"),
        (namesake.server("localhost", |_| {}), "not signed by a CA that is trusted here"),
        (ca.server("elsewhere.example", |_| {}), "for another host name"),
        (ca.server("localhost", expire), "has expired"),
    ] {
        let mut server = Server::start_tls([status("200 OK")], tls).await;
        let sink = sink_with(ca.config(), &https(&server), LONG);
        let error = sink.check().await.unwrap_err();
        assert_eq!(error.kind, SinkErrorKind::Fatal);
        assert!(error.message.contains(says), "{error}");
        let failure = failure(deliver(&sink, "1").await);
        assert_eq!(failure.kind, FailureKind::Fatal);
        assert!(failure.message.contains(says) && failure.message.contains("localhost"), "{failure}");

        let trusting = sink_with(json!({ "insecure_skip_verify": true }), &https(&server), LONG);
        assert_eq!(trusting.check().await, Ok(()));
        assert_eq!(deliver(&trusting, "1").await, ACKNOWLEDGED);
        assert_eq!(server.next().await.body, BODY);
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks_for_one() {
    let (ca, stranger) = (Ca::new("ours"), Ca::new("stranger"));
    let roots = |ca: &Ca| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.issuer.der().clone()).unwrap();
        Arc::new(roots)
    };
    let provider = Arc::new(ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots(&ca), Arc::clone(&provider)).build().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ca.issuer).unwrap();
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let mut server = Server::start_tls([status("200 OK")], tls).await;

    let (cert, key) = ca.client();
    let good = sink_with(json!({ "ca_file": ca.file, "cert_file": &*cert, "key_file": &*key }), &https(&server), LONG);
    assert_eq!(good.check().await, Ok(()));
    assert_eq!(deliver(&good, "1").await, ACKNOWLEDGED);
    assert_eq!(server.next().await.headers["webhook-id"], "1");

    let none = sink_with(ca.config(), &https(&server), LONG);
    let (cert, key) = stranger.client();
    let wrong = sink_with(json!({ "ca_file": ca.file, "cert_file": &*cert, "key_file": &*key }), &https(&server), LONG);
    for sink in [none, wrong] {
        let failure = failure(deliver(&sink, "2").await);
        assert_eq!(failure.kind, FailureKind::Fatal, "{failure}");
        assert!(failure.message.contains("check `cert_file` and `key_file`"), "{failure}");
    }
}

#[test]
fn client_certificates_that_cannot_be_used_are_named() {
    let ca = Ca::new("ours");
    let (cert, key) = ca.client();
    let (_, other_key) = ca.client();
    let connect = |cert: &std::path::Path, key: &std::path::Path| {
        let config = json!({ "url": "https://a.example", "secret": SECRET, "ca_file": ca.file, "cert_file": cert, "key_file": key });
        let config: WebhookConfig = serde_json::from_value(config).unwrap();
        WebhookSink::new(&config, &SinkContext::new("partner", LONG)).map(drop)
    };
    assert_eq!(connect(&cert, &key), Ok(()));
    for (cert, key, says) in [
        (&*cert, &*other_key, "do not go together"),
        (&*key, &*key, "the client certificate file"),
        (&*cert, &*cert, "the private key file"),
    ] {
        let error = connect(cert, key).unwrap_err();
        assert_eq!(error.kind, SinkErrorKind::Fatal);
        assert!(error.message.contains(says), "{error}");
    }
    let half: WebhookConfig =
        serde_json::from_value(json!({ "url": "https://a.example", "secret": SECRET, "cert_file": "/c.pem" })).unwrap();
    let issues: Vec<String> = WebhookFactory::validate(&half).iter().map(ToString::to_string).collect();
    assert_eq!(issues, ["a client certificate needs `key_file` too"]);
}

#[tokio::test]
async fn tls_with_a_server_that_speaks_none_is_a_broken_connection() {
    let ca = Ca::new("plain");
    let greeting = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = greeting.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (socket, _) = greeting.accept().await.unwrap();
            let _ = socket.try_write(b"220 mail.example ready\r\n");
        }
    });
    let sink = sink_with(ca.config(), &format!("https://localhost:{port}/"), LONG);
    assert_eq!(sink.check().await.unwrap_err().kind, SinkErrorKind::Retryable);
    assert_eq!(failure(deliver(&sink, "1").await).kind, FailureKind::Connection);
}

#[tokio::test]
async fn ca_files_are_read_at_the_start() {
    let missing = json!({ "url": "https://a.example", "secret": SECRET, "ca_file": "/nonexistent/ca.pem" });
    let factory = erase::<WebhookFactory>();
    let parsed = factory.parse(missing).unwrap();
    let error = factory.connect(&parsed, SinkContext::new("partner", LONG)).await.map(drop).unwrap_err();
    assert_eq!(error.kind, SinkErrorKind::Fatal);
    assert!(error.message.contains("/nonexistent/ca.pem"), "{error}");
}

#[tokio::test]
async fn http2_is_spoken_with_a_server_that_offers_it() {
    let ca = Ca::new("http2");
    let mut tls = ca.server("localhost", |_| {});
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (seen, mut requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(socket).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let mut statuses = [200, 500, 200].into_iter().cycle();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let status = statuses.next().unwrap();
            if seen.send(request.headers()["webhook-id"].clone()).is_err() {
                return;
            }
            let answer = http::Response::builder().status(status).body(()).unwrap();
            respond.send_response(answer, true).unwrap();
        }
    });
    let sink = sink_with(ca.config(), &format!("https://localhost:{port}/hooks"), LONG);
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    assert_eq!(failure(deliver(&sink, "2").await).kind, FailureKind::Unavailable);
    assert_eq!(deliver(&sink, "2").await, ACKNOWLEDGED);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(requests.recv().await.unwrap());
    }
    assert_eq!(ids, ["1", "2", "2"]);
}
