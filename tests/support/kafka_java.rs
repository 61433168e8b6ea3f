//! What a Kafka broker is started from: jars, properties, certificates, a formatted log folder, an archive of classes.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use sha2::{Digest, Sha256};

use super::processes;

/// A broker's ports.
pub struct Listeners {
    pub plain: u16,
    pub tls: u16,
    pub sasl: u16,
    pub sasl_tls: u16,
    pub controller: u16,
    /// Without a login and with it: the port itself, and the port that clients are told.
    pub proxied: Option<[(u16, u16); 2]>,
    pub mutual_tls: bool,
}

/// All that does not differ between brokers.
const PROPERTIES: &str = "\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAIN
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
num.network.threads=1
num.io.threads=2
num.replica.fetchers=1
background.threads=1
log.cleaner.dedupe.buffer.size=2097152
log.cleaner.threads=1
log.index.size.max.bytes=262144
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
ssl.keystore.type=PEM
ssl.truststore.type=PEM
sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN,OAUTHBEARER
";

/// What each listener with a login has.
const LOGINS: &str = "\
scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_walgate=\"secret\";
oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";
oauthbearer.sasl.server.callback.handler.class=org.apache.kafka.common.security.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler
";

/// Fills a broker's folder: `server.properties` and a log folder that was never used.
pub fn lay_out(folder: &Path, listeners: &Listeners, more: &[String]) {
    let text = properties(&folder.join("log"), template(), listeners, more);
    std::fs::write(folder.join("server.properties"), text).expect("server.properties");
    std::fs::create_dir(folder.join("tmp")).expect("a folder");
    done(Command::new("cp").arg("-a").arg(template().join("log")).arg(folder));
}

fn properties(log: &Path, certificates: &Path, listeners: &Listeners, more: &[String]) -> String {
    let Listeners { plain, tls, sasl, sasl_tls, controller, proxied, mutual_tls } = *listeners;
    // Name, protocol, port, and where clients are told to come.
    let mut all = vec![
        ("PLAIN", "PLAINTEXT", plain, "127.0.0.1", plain),
        ("TLS", "SSL", tls, "localhost", tls),
        ("SASL", "SASL_PLAINTEXT", sasl, "127.0.0.1", sasl),
        ("SASLTLS", "SASL_SSL", sasl_tls, "localhost", sasl_tls),
    ];
    if let Some([open, login]) = proxied {
        all.push(("PROXIED", "PLAINTEXT", open.0, "127.0.0.1", open.1));
        all.push(("SASLPROXIED", "SASL_PLAINTEXT", login.0, "127.0.0.1", login.1));
    }
    let mut bound = vec![format!("CONTROLLER://127.0.0.1:{controller}")];
    let mut protocols = vec!["CONTROLLER:PLAINTEXT".to_owned()];
    let (mut advertised, mut logins) = (Vec::new(), String::new());
    for (name, protocol, port, host, told) in all {
        bound.push(format!("{name}://127.0.0.1:{port}"));
        protocols.push(format!("{name}:{protocol}"));
        advertised.push(format!("{name}://{host}:{told}"));
        if protocol.starts_with("SASL") {
            let line = |line: &str| format!("listener.name.{}.{line}\n", name.to_lowercase());
            logins.extend(LOGINS.lines().map(line));
        }
    }
    format!(
        "{PROPERTIES}{logins}controller.quorum.voters=1@127.0.0.1:{controller}\nlisteners={}\n\
         listener.security.protocol.map={}\nadvertised.listeners={}\nlog.dirs={}\nssl.keystore.location={}\n\
         ssl.truststore.location={}\nlistener.name.tls.ssl.client.auth={}\n{}\n",
        bound.join(","),
        protocols.join(","),
        advertised.join(","),
        log.display(),
        certificates.join("server.pem").display(),
        certificates.join("ca.crt").display(),
        if mutual_tls { "required" } else { "requested" },
        more.join("\n"),
    )
}

/// The broker whose folder this is.
pub fn broker(folder: &Path, flags: &[String]) -> Command {
    let mut command = java("kafka.Kafka", &[flags, &["-Xms384m".to_owned(), "-Xmx384m".to_owned()]].concat(), folder);
    command.arg(folder.join("server.properties"));
    command
}

/// `tmp` in the folder takes what Java would leave behind elsewhere.
fn java(main: &str, flags: &[String], folder: &Path) -> Command {
    let mut command = Command::new("java");
    command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xshare:auto"]);
    command.arg(format!("-Djava.io.tmpdir={}", folder.join("tmp").display()));
    command.args(["-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]);
    command.args(["-Dorg.slf4j.simpleLogger.showDateTime=true"]);
    command.arg("-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info");
    command.args(flags).arg("-cp").arg(class_path()).arg(main).current_dir(folder);
    command
}

/// Flags for a start with the classes of [`archive`]; none where it is missing.
pub fn with_known_classes() -> Vec<String> {
    let archive = archive();
    archive.exists().then(|| format!("-XX:SharedArchiveFile={}", archive.display())).into_iter().collect()
}

/// Where the classes that a broker needs lie, ready to be mapped, once a broker has left them there. Java takes them only
/// with the version and the jars that they were made from: both are in the name.
pub fn archive() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let version = Command::new("java").arg("-version").stdin(Stdio::null()).output().expect("java");
        let mut hash = Sha256::new();
        hash.update(&version.stderr);
        for jar in jars() {
            let metadata = std::fs::metadata(jar).expect("a jar");
            hash.update(format!("{} {} {}\n", jar.display(), metadata.len(), metadata.mtime()));
        }
        let name: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!(".cache/kafka-classes/{name}.jsa"))
    })
}

/// `WALGATE_TEST_KAFKA`, or what `tests/setup.sh` has put into `.cache`; in one order, which the archive depends on.
fn jars() -> &'static [PathBuf] {
    static JARS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    JARS.get_or_init(|| {
        let folder = std::env::var_os("WALGATE_TEST_KAFKA")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/kafka"), PathBuf::from);
        let known = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        let entries = std::fs::read_dir(&known).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut jars: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "jar")).collect();
        assert!(
            !jars.is_empty(),
            "no jars in {}: tests/setup.sh fetches Kafka, WALGATE_TEST_KAFKA names another folder",
            folder.display()
        );
        jars.sort();
        jars
    })
}

fn class_path() -> std::ffi::OsString {
    std::env::join_paths(jars()).expect("paths without a colon")
}

/// A folder with certificates, and with a formatted log folder that was never used: `log`. Made once per process.
pub fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let folder = processes::folder("kafka-template");
        certificates(&folder);
        std::fs::create_dir(folder.join("tmp")).expect("a folder");
        let listeners =
            Listeners { plain: 1, tls: 2, sasl: 3, sasl_tls: 4, controller: 5, proxied: None, mutual_tls: false };
        let text = properties(&folder.join("log"), &folder, &listeners, &[]);
        std::fs::write(folder.join("server.properties"), text).expect("server.properties");
        let flags = [with_known_classes(), vec!["-Xmx128m".to_owned()]].concat();
        let mut format = java("kafka.tools.StorageTool", &flags, &folder);
        format.args(["format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"]).arg(folder.join("server.properties"));
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            format.arg("--add-scram").arg(format!("{mechanism}=[name=walgate,password=secret]"));
        }
        done(&mut format);
        folder
    })
}

/// Writes a CA, and what it has signed for the broker and for a client.
fn certificates(folder: &Path) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, "walgate test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).expect("a file");
    write("ca.crt", issuer.pem());
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    for (name, user, names) in [("server", "localhost", names), ("client", "walgate", Vec::new())] {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate").pem();
        write(&format!("{name}.pem"), format!("{}{certificate}{}", key.serialize_pem(), issuer.pem()));
        write(&format!("{name}.crt"), certificate);
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

#[track_caller]
fn done(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
}
