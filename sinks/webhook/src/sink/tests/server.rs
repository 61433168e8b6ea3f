//! An HTTP server that does what it is told, also what no server should.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
};
use tokio_rustls::TlsAcceptor;

/// What becomes of one request.
#[derive(Clone)]
pub(super) enum Reaction {
    /// Writes this and reads the next request.
    Answer(String),
    /// Writes this and closes the connection.
    AnswerAndClose(String),
    /// Closes with a reset, without an answer.
    Reset,
    /// Writes this, then resets.
    AnswerAndReset(String),
    /// Says nothing and keeps the connection open.
    Silence,
    /// Writes this, then a byte every few milliseconds for ever.
    Drip(String),
    /// Writes this, then as much as the other side takes.
    Flood(String),
    /// Writes the first text, then the second again and again for as long as the other side takes it.
    Repeat(String, String),
    /// Writes these bytes and reads the next request.
    Bytes(Vec<u8>),
    /// Answers before it has read the body, then reads it.
    Early(String),
    /// 422 if the body holds the first text, 204 otherwise.
    RefuseWith(&'static str),
}

pub(super) fn status(line: &str) -> Reaction {
    with_body(line, "")
}

pub(super) fn with_body(line: &str, body: &str) -> Reaction {
    Reaction::Answer(format!("HTTP/1.1 {line}\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

#[derive(Debug)]
pub(super) struct Received {
    pub(super) connection: usize,
    pub(super) line: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

pub(super) struct Server {
    pub(super) addr: SocketAddr,
    pub(super) received: mpsc::UnboundedReceiver<Received>,
    /// Bytes that each flood could write before its connection was closed.
    pub(super) floods: mpsc::UnboundedReceiver<usize>,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Reacts to the requests in turn, and to all further ones as to the last.
    pub(super) async fn start(reactions: impl Into<Vec<Reaction>>) -> Self {
        Self::listen("127.0.0.1:0", reactions, None).await
    }

    pub(super) async fn start_tls(reactions: impl Into<Vec<Reaction>>, tls: rustls::ServerConfig) -> Self {
        Self::listen("127.0.0.1:0", reactions, Some(TlsAcceptor::from(Arc::new(tls)))).await
    }

    pub(super) async fn listen(addr: &str, reactions: impl Into<Vec<Reaction>>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (requests, received) = mpsc::unbounded_channel();
        let (flooded, floods) = mpsc::unbounded_channel();
        let mut reactions: Vec<Reaction> = reactions.into();
        reactions.reverse();
        let reactions = Arc::new(Mutex::new(reactions));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            // Aborts what it serves when it is aborted.
            let mut serving = tokio::task::JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let connection = count.fetch_add(1, Ordering::SeqCst);
                let serve = Serve {
                    connection,
                    requests: requests.clone(),
                    flooded: flooded.clone(),
                    reactions: Arc::clone(&reactions),
                };
                match &tls {
                    None => drop(serving.spawn(serve.plain(socket))),
                    Some(tls) => {
                        let handshake = tls.accept(socket);
                        serving.spawn(async move {
                            if let Ok(stream) = handshake.await {
                                serve.run(BufReader::new(stream)).await;
                            }
                        });
                    }
                }
            }
        });
        Server { addr, received, floods, connections, task }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hooks", self.addr)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) async fn next(&mut self) -> Received {
        self.received.recv().await.unwrap()
    }
}

struct Serve {
    connection: usize,
    requests: mpsc::UnboundedSender<Received>,
    flooded: mpsc::UnboundedSender<usize>,
    reactions: Arc<Mutex<Vec<Reaction>>>,
}

impl Serve {
    async fn plain(self, socket: TcpStream) {
        let mut stream = BufReader::new(socket);
        if self.serve(&mut stream).await.is_some() {
            let _ = stream.into_inner().set_zero_linger();
        }
    }

    async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, mut stream: BufReader<S>) {
        self.serve(&mut stream).await;
    }

    /// `Some`: the connection is to be reset.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufReader<S>) -> Option<()> {
        loop {
            let (line, headers) = read_head(stream).await?;
            let reaction = {
                let mut reactions = self.reactions.lock().await;
                if reactions.len() > 1 { reactions.pop()? } else { reactions.first()?.clone() }
            };
            if let Reaction::Early(answer) = &reaction {
                stream.write_all(answer.as_bytes()).await.ok()?;
            }
            let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.ok()?;
            let refused =
                matches!(&reaction, Reaction::RefuseWith(text) if String::from_utf8_lossy(&body).contains(text));
            let _ = self.requests.send(Received { connection: self.connection, line, headers, body });
            match reaction {
                Reaction::RefuseWith(_) => {
                    let status = if refused { "422 Unprocessable Entity" } else { "204 No Content" };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.ok()?;
                }
                Reaction::Answer(answer) => stream.write_all(answer.as_bytes()).await.ok()?,
                Reaction::AnswerAndClose(answer) => {
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                    return None;
                }
                Reaction::Reset => return Some(()),
                Reaction::AnswerAndReset(answer) => {
                    let _ = stream.write_all(answer.as_bytes()).await;
                    return Some(());
                }
                Reaction::Silence => std::future::pending().await,
                Reaction::Drip(head) => {
                    stream.write_all(head.as_bytes()).await.ok()?;
                    loop {
                        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                        stream.write_all(b"x").await.ok()?;
                    }
                }
                Reaction::Flood(head) => return self.flood(stream, &head, &[b'x'; 4096]).await,
                Reaction::Repeat(head, again) => return self.flood(stream, &head, again.as_bytes()).await,
                Reaction::Bytes(answer) => stream.write_all(&answer).await.ok()?,
                Reaction::Early(_) => {}
            }
        }
    }

    /// Writes until the connection is closed, and says how much that was.
    async fn flood<S: AsyncWrite + Unpin>(&self, stream: &mut S, head: &str, again: &[u8]) -> Option<()> {
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut written = 0;
        while stream.write_all(again).await.is_ok() {
            written += again.len();
        }
        let _ = self.flooded.send(written);
        None
    }
}

async fn read_head<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<(String, HashMap<String, String>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next()?.to_owned();
    let headers =
        lines.map(|line| line.split_once(": ").unwrap()).map(|(name, value)| (name.to_owned(), value.to_owned()));
    Some((line, headers.collect()))
}
