//! An HTTP server on every address of this machine, which remembers at which of them it was connected to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::http1;

#[derive(Default)]
struct Seen {
    connections: BTreeMap<IpAddr, usize>,
    /// `webhook-id` of each request, with the address that it was sent to.
    requests: Vec<(String, IpAddr)>,
}

/// See the module. It answers every request with 200 and closes the connection.
pub struct Everywhere {
    port: u16,
    seen: Arc<Mutex<Seen>>,
}

impl Everywhere {
    /// Listens for as long as the process lives.
    pub fn start() -> Everywhere {
        // IPv4 too, as mapped addresses.
        let listener = TcpListener::bind("[::]:0").expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let seen = shared.clone();
                let Ok(address) = stream.local_addr() else { continue };
                let address = address.ip().to_canonical();
                *seen.lock().expect("what was seen").connections.entry(address).or_default() += 1;
                std::thread::spawn(move || serve(&stream, address, &seen));
            }
        });
        Everywhere { port, seen }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The addresses that somebody connected to since the start, or since [`Everywhere::forget`].
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.seen.lock().expect("what was seen").connections.keys().copied().collect()
    }

    /// Where the requests with this id were sent to.
    pub fn requests(&self, id: &str) -> Vec<IpAddr> {
        let seen = self.seen.lock().expect("what was seen");
        seen.requests.iter().filter(|(known, _)| known == id).map(|(_, address)| *address).collect()
    }

    pub fn forget(&self) {
        *self.seen.lock().expect("what was seen") = Seen::default();
    }
}

fn serve(stream: &TcpStream, address: IpAddr, seen: &Mutex<Seen>) {
    let mut reader = BufReader::new(stream);
    let Some(head) = http1::read_head(&mut reader) else { return };
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if http1::read_body(&mut reader, header("content-length"), header("transfer-encoding")).is_none() {
        return;
    }
    seen.lock().expect("what was seen").requests.push((header("webhook-id").to_owned(), address));
    let close = [("connection".to_owned(), "close".to_owned())];
    http1::write_response(stream, 200, &close, b"", &head.method);
}
