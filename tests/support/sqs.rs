//! SQS servers as child processes: ministack, and ElasticMQ for what ministack lets pass. Queues are made, filled and
//! read over HTTP by hand.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::processes::{self, Process};
use super::{http_get, wait};

/// What `Server::with` may ask for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The only access key id that is taken; any, without it.
    pub access_key_id: Option<&'static str>,
    /// How long a FIFO queue knows a deduplication id; five minutes, without it.
    pub dedup_window: Option<Duration>,
}

enum Kind {
    Ministack(Options),
    ElasticMq {
        /// Whether it writes down what its queues hold.
        keeps: bool,
    },
}

/// See the module. What its queues hold outlives [`Server::stop`].
pub struct Server {
    folder: PathBuf,
    port: u16,
    kind: Kind,
    process: Mutex<Option<Process>>,
}

/// A message as a queue hands it out.
#[derive(Clone, Debug)]
pub struct Stored {
    pub body: String,
    pub attributes: Vec<(String, String)>,
    pub group: Option<String>,
    pub dedup: Option<String>,
}

impl Stored {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn id(&self) -> &str {
        self.attribute("id").expect("the attribute id")
    }
}

impl Server {
    /// A shared ministack.
    pub fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Server::with(Options::default()))
    }

    /// A ministack of the test's own.
    pub fn with(options: Options) -> Server {
        Server::start(Kind::Ministack(options))
    }

    /// A shared ElasticMQ.
    pub fn elasticmq() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Server::start(Kind::ElasticMq { keeps: false }))
    }

    /// An ElasticMQ of the test's own, whose queues outlive [`Server::stop`].
    pub fn lasting_elasticmq() -> Server {
        Server::start(Kind::ElasticMq { keeps: true })
    }

    fn start(kind: Kind) -> Server {
        let folder = processes::folder("sqs");
        for name in ["tmp", "state"] {
            std::fs::create_dir(folder.join(name)).expect("a folder");
        }
        let server = Server { folder, port: wait::free_port(), kind, process: Mutex::new(None) };
        server.start_again();
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The inside of `sqs: { }` that leads here by way of this port.
    pub fn by(&self, port: u16) -> String {
        format!(
            "endpoint: \"http://127.0.0.1:{port}\", region: us-east-1, access_key_id: {KEY}, secret_access_key: {SECRET}"
        )
    }

    /// Starts the stopped server again: same data, same port. Returns when it answers.
    #[track_caller]
    pub fn start_again(&self) {
        let mut slot = self.process.lock().expect("the server's process");
        assert!(slot.is_none(), "the server runs already");
        let log = File::options().append(true).create(true).open(self.folder.join("log")).expect("a log");
        let (mut command, ready) = match &self.kind {
            Kind::Ministack(options) => (self.ministack(options), "/_ministack/health"),
            Kind::ElasticMq { keeps } => (self.elastic(*keeps), "/?Action=ListQueues"),
        };
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        let mut process = Process::spawn(&mut command, Signal::TERM);
        let answers = wait::within(3 * wait::DEADLINE, || {
            process.ended().is_some() || http_get::get(self.port, ready).is_some_and(|(status, _)| status == 200)
        });
        assert!(answers && process.ended().is_none(), "the SQS server did not start:\n{}", self.log());
        *slot = Some(process);
    }

    fn ministack(&self, options: &Options) -> Command {
        let python = cached("ministack/bin/python3");
        let window = options.dedup_window.unwrap_or(Duration::from_secs(300)).as_secs_f64();
        let mut command = Command::new(python);
        // Its own entry point, but for the length of the deduplication window.
        command.arg("-c").arg(format!(
            "import sys; sys.argv = ['ministack']; import ministack.services.sqs as sqs; \
             sqs._DEDUP_WINDOW_S = {window}; from ministack.app import main; main()"
        ));
        for (name, value) in [
            ("SERVICES", "sqs"),
            ("BIND_HOST", "127.0.0.1"),
            ("MINISTACK_HOST", "127.0.0.1"),
            ("PERSIST_STATE", "1"),
            ("LOG_LEVEL", "WARNING"),
            ("SFTP_ENABLED", "0"),
            ("IOT_MTLS_ENABLED", "0"),
            ("DOCKER_HOST", "unix:///nonexistent"),
        ] {
            command.env(name, value);
        }
        command.env("GATEWAY_PORT", self.port.to_string());
        command.env("TMPDIR", self.folder.join("tmp")).env("STATE_DIR", self.folder.join("state"));
        if let Some(id) = options.access_key_id {
            command.env("AUTH", "true").env("AWS_ACCESS_KEY_ID", id);
        }
        command
    }

    fn elastic(&self, keeps: bool) -> Command {
        let (port, folder) = (self.port, self.folder.display());
        let mut text = format!(
            "include classpath(\"application.conf\")\n\
             node-address {{ protocol = http, host = \"127.0.0.1\", port = {port}, context-path = \"\" }}\n\
             rest-sqs {{ enabled = true, bind-hostname = \"127.0.0.1\", bind-port = {port}, sqs-limits = strict }}\n\
             rest-stats {{ enabled = false }}\ngenerate-node-address = false\n\
             aws {{ region = us-east-1, accountId = 000000000000 }}\n"
        );
        if keeps {
            text.push_str(&format!(
                "queues-storage {{ enabled = true, path = \"{folder}/queues.conf\" }}\n\
                 messages-storage {{ enabled = true, uri = \"jdbc:h2:{folder}/messages\" }}\n"
            ));
        }
        let config = self.folder.join("elasticmq.conf");
        std::fs::write(&config, text).expect("elasticmq.conf");
        let mut command = Command::new("java");
        command.args(["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.arg(format!("-Dconfig.file={}", config.display()));
        command.arg("-cp").arg(cached("elasticmq").join("*")).arg("org.elasticmq.server.Main");
        command
    }

    /// SIGTERM; returns when it is gone. It has written down what its queues hold (neither server does so at SIGKILL).
    pub fn stop(&self) {
        let mut process = self.process.lock().expect("the server's process").take().expect("a running server");
        process.signal(Signal::TERM);
        assert!(process.reap(wait::DEADLINE).is_some(), "the SQS server did not end");
    }

    /// STOP and CONT.
    pub fn signal(&self, signal: Signal) {
        self.process.lock().expect("the server's process").as_ref().expect("a running server").signal(signal);
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// A call of the JSON protocol; its answer must be a success.
    #[track_caller]
    pub fn call(&self, action: &str, parameters: &Value) -> Value {
        let (status, body) = self.post(action, parameters).expect("an answer of the SQS server");
        assert_eq!(status, 200, "{action} {parameters}: {body}");
        if body.is_empty() { Value::Null } else { serde_json::from_str(&body).expect("JSON") }
    }

    fn post(&self, action: &str, parameters: &Value) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        let body = parameters.to_string();
        // HTTP/1.0: the answer ends with the connection, and is not chunked.
        let head = format!(
            "POST / HTTP/1.0\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/x-amz-json-1.0\r\n\
             X-Amz-Target: AmazonSQS.{action}\r\nAuthorization: AWS4-HMAC-SHA256 \
             Credential={KEY}/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=0\r\n\
             Content-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// Makes a queue; names that end in `.fifo` make FIFO queues.
    #[track_caller]
    pub fn create(&self, name: &str, attributes: &[(&str, &str)]) {
        let mut all: serde_json::Map<String, Value> =
            attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        if name.ends_with(".fifo") {
            all.insert("FifoQueue".to_owned(), "true".into());
        }
        self.call("CreateQueue", &json!({ "QueueName": name, "Attributes": all }));
    }

    #[track_caller]
    pub fn url(&self, name: &str) -> String {
        self.call("GetQueueUrl", &json!({ "QueueName": name }))["QueueUrl"].as_str().expect("a URL").to_owned()
    }

    #[track_caller]
    pub fn set(&self, name: &str, attribute: &str, value: &str) {
        let attributes = json!({ attribute: value });
        self.call("SetQueueAttributes", &json!({ "QueueUrl": self.url(name), "Attributes": attributes }));
    }

    #[track_caller]
    pub fn delete(&self, name: &str) {
        self.call("DeleteQueue", &json!({ "QueueUrl": self.url(name) }));
    }

    /// Messages that wait in a queue, about.
    #[track_caller]
    pub fn count(&self, name: &str) -> usize {
        let names = json!(["ApproximateNumberOfMessages"]);
        let answer = self.call("GetQueueAttributes", &json!({ "QueueUrl": self.url(name), "AttributeNames": names }));
        let text = &answer["Attributes"]["ApproximateNumberOfMessages"];
        text.as_str().and_then(|text| text.parse().ok()).expect("a number")
    }

    /// Receives and deletes until the queue has nothing left; in the order in which it hands messages out.
    #[track_caller]
    pub fn take_all(&self, name: &str) -> Vec<Stored> {
        let url = self.url(name);
        let mut taken = Vec::new();
        while self.take_some(&url, |some| taken.extend(some)) {}
        taken
    }

    /// Receives ten messages at the most, gives them to `keep`, and deletes them: only then is what follows them in
    /// their groups handed out. Whether there were any.
    #[track_caller]
    pub fn take_some(&self, url: &str, keep: impl FnOnce(Vec<Stored>)) -> bool {
        let answer = self.call(
            "ReceiveMessage",
            &json!({
                "QueueUrl": url,
                "MaxNumberOfMessages": 10,
                "AttributeNames": ["All"],
                "MessageAttributeNames": ["All"],
                "VisibilityTimeout": 600,
                "WaitTimeSeconds": 0,
            }),
        );
        let messages = answer["Messages"].as_array().cloned().unwrap_or_default();
        if messages.is_empty() {
            return false;
        }
        keep(messages.iter().map(stored).collect());
        let entries: Vec<Value> = messages
            .iter()
            .enumerate()
            .map(|(id, message)| json!({ "Id": id.to_string(), "ReceiptHandle": message["ReceiptHandle"] }))
            .collect();
        let answer = self.call("DeleteMessageBatch", &json!({ "QueueUrl": url, "Entries": entries }));
        assert!(answer["Failed"].as_array().is_none_or(Vec::is_empty), "{answer}");
        true
    }
}

/// The access key that [`Server::by`] gives.
pub const KEY: &str = "AKIAWALGATETEST00001";
/// Its secret; a canary too: it must not appear in any output.
pub const SECRET: &str = "sqs-canary-5b0a77e1d2";

fn stored(message: &Value) -> Stored {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let attributes = message["MessageAttributes"].as_object().cloned().unwrap_or_default();
    Stored {
        body: text(&message["Body"]).expect("a body"),
        attributes: attributes
            .iter()
            .map(|(name, value)| (name.clone(), text(&value["StringValue"]).expect("a text")))
            .collect(),
        group: text(&message["Attributes"]["MessageGroupId"]),
        dedup: text(&message["Attributes"]["MessageDeduplicationId"]),
    }
}

/// What `tests/setup.sh` has put into `.cache`.
#[track_caller]
fn cached(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache").join(name);
    assert!(path.exists(), "{} is missing: tests/setup.sh fetches it", path.display());
    path
}
