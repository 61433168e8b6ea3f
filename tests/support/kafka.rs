//! A real Kafka broker (KRaft, one JVM) as a child process, to be killed, frozen and started again.
//!
//! One broker is shared by the tests, each with topics of its own; those that hurt a broker start another, which has
//! proxies in front of it: a client that connects through one of them is told by the broker to come through it again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustix::process::Signal;
use serde_json::json;

use super::kafka_java::{self, Listeners};
use super::kafka_wire::Wire;
use super::processes::{self, Process};
use super::proxy::Proxy;
use super::wait;

/// Properties that switch access lists on. A client without a login may do everything, others what no line denies; a
/// topic with a line that allows is closed to all whom none allows.
pub const AUTHORIZER: [&str; 3] = [
    "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users=User:ANONYMOUS",
    "allow.everyone.if.no.acl.found=true",
];

/// How a broker differs from the usual one.
#[derive(Default)]
pub struct Options {
    /// More properties, as `name=value`; they win.
    pub properties: Vec<String>,
    /// A client of the listener `tls` must show a certificate; without this, it may.
    pub mutual_tls: bool,
    /// Makes [`Kafka::proxy`] from the port that it leads to; without this, it lets everything pass.
    pub through: Option<Box<dyn FnOnce(u16) -> Proxy>>,
}

/// Where a broker listens, on 127.0.0.1. Its certificate is for that and for `localhost`.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Neither TLS nor a login.
    pub plain: u16,
    /// TLS; a client may show a certificate.
    pub tls: u16,
    /// A login without TLS: SCRAM-SHA-256, SCRAM-SHA-512 and PLAIN for the user `walgate` with the password `secret`,
    /// OAUTHBEARER with a [`token`].
    pub sasl: u16,
    /// The same over TLS.
    pub sasl_tls: u16,
}

/// See the module. Its folder, and so what it has stored, outlives a kill.
pub struct Kafka {
    folder: PathBuf,
    ports: Ports,
    process: Mutex<Option<Process>>,
    /// To a listener without a login, and to one with it.
    proxies: Option<[Proxy; 2]>,
}

impl Kafka {
    /// The shared broker. It has no proxies.
    pub fn shared() -> &'static Kafka {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| Kafka::started(Options::default(), false))
    }

    /// A broker of the test's own, with proxies.
    pub fn start() -> Kafka {
        Kafka::with(Options::default())
    }

    /// The same, but for the options.
    pub fn with(options: Options) -> Kafka {
        Kafka::started(options, true)
    }

    fn started(options: Options, proxied: bool) -> Kafka {
        learn_classes();
        let kafka = Kafka::laid_out(options, proxied);
        kafka.start_again();
        kafka
    }

    /// All but the process.
    fn laid_out(options: Options, proxied: bool) -> Kafka {
        let folder = processes::folder("kafka");
        let [plain, tls, sasl, sasl_tls] = [(); 4].map(|()| wait::free_port());
        let ports = Ports { plain, tls, sasl, sasl_tls };
        // The proxies are there before the broker, which tells its clients their ports.
        let behind = [(); 2].map(|()| wait::free_port());
        let proxies = proxied.then(|| {
            let through = options.through.unwrap_or_else(|| Box::new(Proxy::to));
            [through(behind[0]), Proxy::to(behind[1])]
        });
        let advertised = proxies.as_ref().map(|proxies| proxies.each_ref().map(Proxy::port));
        let listeners = Listeners {
            plain,
            tls,
            sasl,
            sasl_tls,
            controller: wait::free_port(),
            proxied: advertised.map(|ports| [(behind[0], ports[0]), (behind[1], ports[1])]),
            mutual_tls: options.mutual_tls,
        };
        kafka_java::lay_out(&folder, &listeners, &options.properties);
        Kafka { folder, ports, process: Mutex::new(None), proxies }
    }

    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The port without TLS and without a login; the broker's own, not a proxy's.
    pub fn port(&self) -> u16 {
        self.ports.plain
    }

    /// The proxy to a listener without TLS and without a login.
    #[track_caller]
    pub fn proxy(&self) -> &Proxy {
        &self.proxies.as_ref().expect("the shared broker has no proxies")[0]
    }

    /// The proxy to a listener with a login and without TLS.
    #[track_caller]
    pub fn sasl_proxy(&self) -> &Proxy {
        &self.proxies.as_ref().expect("the shared broker has no proxies")[1]
    }

    /// The folder with `ca.crt`, `client.crt` and `client.key`, the same for all brokers.
    pub fn certificates(&self) -> &'static Path {
        kafka_java::template()
    }

    /// A connection of the test's own.
    #[track_caller]
    pub fn wire(&self) -> Wire {
        Wire::connect(self.ports.plain)
    }

    /// A new topic; its name.
    #[track_caller]
    pub fn topic(&self, partitions: u32) -> String {
        let name = topic_name();
        self.wire().create_topic(&name, partitions, &[]);
        name
    }

    /// Starts the stopped or killed broker again: same data, same ports. Returns when it leads all that it has, and any
    /// producer can write; after a kill that takes some seconds, until the session of the killed one is over.
    #[track_caller]
    pub fn start_again(&self) {
        self.start_with(&kafka_java::with_known_classes());
    }

    #[track_caller]
    fn start_with(&self, flags: &[String]) {
        let mut slot = self.process();
        assert!(slot.is_none(), "the broker runs already");
        let log = File::options().append(true).create(true).open(self.folder.join("kafka.log")).expect("kafka.log");
        let mut command = kafka_java::broker(&self.folder, flags);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        let mut process = Process::spawn(&mut command, Signal::KILL);
        let serves = || {
            let mut wire = Wire::try_connect(self.ports.plain)?;
            Ok::<_, std::io::Error>(wire.try_serves(None)? && wire.try_gives_producer_ids()?)
        };
        let over = wait::within(3 * wait::DEADLINE, || process.ended().is_some() || serves().unwrap_or(false));
        assert!(over && process.ended().is_none(), "Kafka did not start:\n{}", self.log());
        *slot = Some(process);
    }

    /// SIGKILL; returns when it is gone.
    #[track_caller]
    pub fn kill9(&self) {
        self.end(Signal::KILL);
    }

    /// SIGTERM; returns when it is gone.
    #[track_caller]
    pub fn stop(&self) {
        self.end(Signal::TERM);
    }

    #[track_caller]
    fn end(&self, signal: Signal) {
        let mut process = self.process().take().expect("a running broker");
        process.signal(signal);
        assert!(process.reap(wait::DEADLINE).is_some(), "Kafka did not end:\n{}", self.log());
    }

    /// SIGSTOP; returns when it stands still.
    #[track_caller]
    pub fn freeze(&self) {
        let pid = self.pid().expect("a running broker");
        processes::signal_pid(pid, Signal::STOP);
        wait::eventually(wait::DEADLINE, "the broker stands still", || {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
        });
    }

    /// SIGCONT.
    #[track_caller]
    pub fn thaw(&self) {
        processes::signal_pid(self.pid().expect("a running broker"), Signal::CONT);
    }

    /// The pid of the broker, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::pid)
    }

    /// Also after a panic while it was held: a destructor that panics as well would hide the first text.
    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder with a partition's log, not to be touched while the broker runs.
    pub fn partition(&self, topic: &str, partition: u32) -> PathBuf {
        self.folder.join(format!("log/{topic}-{partition}"))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("kafka.log")).unwrap_or_default()
    }
}

/// A name that no topic has yet.
pub fn topic_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A token of OAUTHBEARER for a user, unsecured as Kafka's own validator takes it.
pub fn token(user: &str, lifetime: Duration) -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a time").as_secs();
    let claims = json!({ "sub": user, "iat": now, "exp": now + lifetime.as_secs() });
    let encode = |part: String| BASE64_URL_SAFE_NO_PAD.encode(part);
    format!("{}.{}.", encode(json!({ "alg": "none" }).to_string()), encode(claims.to_string()))
}

/// Lets a first broker run, where none has yet, from which later ones get their classes ready.
fn learn_classes() {
    static LEARNT: OnceLock<()> = OnceLock::new();
    LEARNT.get_or_init(|| {
        let archive = kafka_java::archive();
        if archive.exists() {
            return;
        }
        std::fs::create_dir_all(archive.parent().expect("a folder")).expect("a folder");
        // Beside its place, and moved there whole: others may be doing the same.
        let partial = archive.with_extension(std::process::id().to_string());
        let kafka = Kafka::laid_out(Options::default(), false);
        kafka.start_with(&[format!("-XX:ArchiveClassesAtExit={}", partial.display())]);
        let topic = kafka.topic(1);
        kafka.wire().produce(&topic, 0, &[super::kafka_records::Record::default()]).expect("a record");
        kafka.wire().read_all(&topic);
        kafka.stop();
        std::fs::rename(&partial, archive)
            .unwrap_or_else(|error| panic!("Java has not written {}: {error}\n{}", partial.display(), kafka.log()));
    });
}
