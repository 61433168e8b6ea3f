//! A TCP proxy on loopback that breaks the link on demand, and lets a tap see, and change, what passes.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;

use super::listen::Listening;

/// What stands between the two ends of a connection, in one direction.
pub trait Tap: Send {
    /// Takes what came in, and appends what goes out.
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>);
}

/// Lets everything pass.
struct Through;

impl Tap for Through {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(bytes);
    }
}

/// Both taps of a new connection: requests, replies.
pub type Taps = (Box<dyn Tap>, Box<dyn Tap>);

/// See the module.
pub struct Proxy {
    listening: Listening,
    shared: Arc<Shared>,
}

struct Shared {
    target: u16,
    rules: Rules,
    accepted: AtomicU64,
    links: Mutex<HashMap<u64, Arc<Link>>>,
    taps: Box<dyn Fn(u64) -> Taps + Send + Sync>,
}

#[derive(Default)]
struct Rules {
    delay_ms: AtomicU64,
    bytes_per_second: AtomicU64,
    drop_replies: AtomicBool,
    black_hole: AtomicBool,
    dropped: AtomicU64,
}

struct Link {
    client: TcpStream,
    server: TcpStream,
    /// Held while whole messages are written to the client, so that others can be put between them.
    to_client: Mutex<()>,
    over: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Requests,
    Replies,
}

impl Proxy {
    /// A proxy to a loopback port.
    pub fn to(target: u16) -> Proxy {
        Proxy::with_taps(target, |_| (Box::new(Through), Box::new(Through)))
    }

    /// A proxy whose connections, numbered from 0, get their own taps.
    pub fn with_taps(target: u16, taps: impl Fn(u64) -> Taps + Send + Sync + 'static) -> Proxy {
        let shared = Arc::new(Shared {
            target,
            rules: Rules::default(),
            accepted: AtomicU64::new(0),
            links: Mutex::new(HashMap::new()),
            taps: Box::new(taps),
        });
        let on_accept = shared.clone();
        Proxy { listening: Listening::start(move |client| Shared::accept(&on_accept, client)), shared }
    }

    pub fn port(&self) -> u16 {
        self.listening.port()
    }

    /// Closes all connections in order (FIN).
    pub fn cut(&self) {
        for link in self.links() {
            link.cut();
        }
    }

    /// Breaks all connections (RST).
    pub fn reset(&self) {
        for link in self.links() {
            link.reset();
        }
    }

    /// New connections are refused.
    pub fn refuse(&self) {
        self.listening.close();
    }

    /// New connections are accepted again.
    pub fn accept(&self) {
        self.listening.open();
    }

    /// Everything that passes is held up for so long.
    pub fn delay(&self, delay: Duration) {
        self.shared.rules.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// At most so many bytes a second in each direction of each connection; 0 for no limit.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.shared.rules.bytes_per_second.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Replies are thrown away: what was asked is done, and nobody hears of it.
    pub fn drop_replies(&self, drop: bool) {
        self.shared.rules.drop_replies.store(drop, Ordering::SeqCst);
    }

    /// Nothing passes any more, and nothing is closed.
    pub fn black_hole(&self, on: bool) {
        self.shared.rules.black_hole.store(on, Ordering::SeqCst);
    }

    /// Bytes of replies that were thrown away.
    pub fn dropped_bytes(&self) -> u64 {
        self.shared.rules.dropped.load(Ordering::SeqCst)
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> usize {
        self.shared.links.lock().expect("the links").len()
    }

    /// Writes bytes to the client of a connection, between two messages of its tap.
    pub fn inject(&self, connection: u64, bytes: &[u8]) {
        let link = self.shared.links.lock().expect("the links").get(&connection).cloned();
        let link = link.expect("a connection that is open");
        let _turn = link.to_client.lock().expect("the client's side");
        (&link.client).write_all(bytes).expect("writing to the client");
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.shared.links.lock().expect("the links").values().cloned().collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.close();
        self.cut();
    }
}

impl Shared {
    fn accept(shared: &Arc<Shared>, client: TcpStream) {
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.target)) else {
            // As if it had been refused, as nearly as one can who has accepted.
            let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let link = Arc::new(Link { client, server, to_client: Mutex::new(()), over: AtomicBool::new(false) });
        shared.links.lock().expect("the links").insert(number, link.clone());
        let (requests, replies) = (shared.taps)(number);
        let [other_shared, other_link] = [(); 2].map(|()| (shared.clone(), link.clone()));
        std::thread::spawn(move || {
            let (shared, link) = other_shared;
            link.pump(&shared.rules, Direction::Requests, requests);
        });
        std::thread::spawn(move || {
            let (shared, link) = other_link;
            link.pump(&shared.rules, Direction::Replies, replies);
            // The server's end is the connection's end.
            if !link.over.load(Ordering::SeqCst) {
                link.finish();
            }
            shared.links.lock().expect("the links").remove(&number);
        });
    }
}

impl Link {
    fn pump(&self, rules: &Rules, direction: Direction, mut tap: Box<dyn Tap>) {
        let (mut from, mut to) = match direction {
            Direction::Requests => (&self.client, &self.server),
            Direction::Replies => (&self.server, &self.client),
        };
        let mut buffer = vec![0; 64 * 1024];
        let mut out = Vec::new();
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(read) => read,
            };
            if !self.hold_up(rules, read) {
                break;
            }
            if direction == Direction::Replies && rules.drop_replies.load(Ordering::SeqCst) {
                rules.dropped.fetch_add(read as u64, Ordering::SeqCst);
                continue;
            }
            out.clear();
            tap.pass(&buffer[..read], &mut out);
            let written = if direction == Direction::Replies {
                let _turn = self.to_client.lock().expect("the client's side");
                to.write_all(&out)
            } else {
                to.write_all(&out)
            };
            if written.is_err() {
                let _ = from.shutdown(Shutdown::Both);
                break;
            }
        }
        if !self.over.load(Ordering::SeqCst) {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    /// Delay, throttle, black hole. False when the link was cut in the meantime.
    fn hold_up(&self, rules: &Rules, bytes: usize) -> bool {
        let delay = rules.delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            std::thread::sleep(Duration::from_millis(delay));
        }
        let rate = rules.bytes_per_second.load(Ordering::SeqCst);
        if rate > 0 {
            std::thread::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64));
        }
        while rules.black_hole.load(Ordering::SeqCst) && !self.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        !self.over.load(Ordering::SeqCst)
    }

    fn cut(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.finish();
    }

    fn finish(&self) {
        let _ = (self.client.shutdown(Shutdown::Both), self.server.shutdown(Shutdown::Both));
    }

    fn reset(&self) {
        self.over.store(true, Ordering::SeqCst);
        for stream in [&self.client, &self.server] {
            // The close that follows sends RST; this shutdown only wakes the reader, and sends nothing.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}
